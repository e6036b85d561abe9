#!/usr/bin/env bash
# VQA v2: generates and scores a split (valid, test-dev, test), at full depth or with exits:
#   run_scripts/vqa/evaluate.sh DATA CHECKPOINT SPLIT OUT [fairseq-generate arguments, --exit-…]
#   --exit-policy similarity   (image 0.9, text 0.95, decoder 0.95: those of entailment; the papers give none)
#   --exit-policy confidence --exit-alpha 0.8   (checkpoints of train_blipee.sh; BLIPEE, Table 6)
# MuE: VQA v2 is not in the paper. On BLIP-2, without labels (BLIPEE, Table 3): 53.6 on test at 1.36 x.
# BLIPEE, Table 2, with labels: 79.0 on test at 1.77 x (BLIP-2 OPT-2.7B), 79.1 at 1.71 x (FlanT5-XL). Table 3, without: 53.4 at
# 1.51 x, 62.1 at 1.45 x.
# Not yet run on the real data.
source "$(dirname "$0")/../benchmark.sh"
evaluate "$@"
