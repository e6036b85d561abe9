#!/usr/bin/env bash
# GQA, balanced: generates and scores a split, one of testdev, valid, test; in full, or with exits:
#   run_scripts/gqa/evaluate.sh DATA CHECKPOINT SPLIT OUT [fairseq-generate arguments, --exit-…]
#   --exit-policy similarity   (image 0.9, text 0.95, decoder 0.95: those of entailment; the papers give none)
# BLIPEE, Table 3, without supervision on BLIP-2 ViT-g FlanT5-XL: 44.0 at 1.45 x; MuE on BLIP-2 37.1 at 1.36 x.
# Not yet run here on the real data.
source "$(dirname "$0")/../benchmark.sh"
data=${1:?folder of SPLIT.tsv} checkpoint=${2:?checkpoint} split=${3:?split} out=${4:?folder for results}
source "$(dirname "$0")/options.sh"
answer "$data" "$checkpoint" "$split" "$out" "${@:5}"
