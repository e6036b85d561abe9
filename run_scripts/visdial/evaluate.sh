#!/usr/bin/env bash
# VisDial 1.0: generates and scores a split (valid, test), at full depth or with exits:
#   run_scripts/visdial/evaluate.sh DATA CHECKPOINT SPLIT OUT [fairseq-generate arguments, --exit-…]
#   --exit-policy similarity   (image 0.9, text 0.95, decoder 0.95: those of entailment; the papers give none)
#   --exit-policy confidence --exit-alpha 0.8   (checkpoints of train_blipee.sh; BLIPEE, Table 6)
# MuE: VisDial is not in the paper. On BLIP-2, without labels (BLIPEE, Table 3): MRR 36.6 at 1.36 x.
# BLIPEE, Table 3, without labels: MRR 32.3 at 1.51 x (BLIP-2 OPT-2.7B), 45.5 at 1.45 x (FlanT5-XL).
# Not yet run on the real data.
source "$(dirname "$0")/../benchmark.sh"
evaluate "$@"
