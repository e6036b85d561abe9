#!/usr/bin/env bash
# VQA v2: generates and scores a split, one of valid, test-dev, test; in full, or with exits:
#   run_scripts/vqa/evaluate.sh DATA CHECKPOINT SPLIT OUT [fairseq-generate arguments, --exit-…]
#   --exit-policy similarity   (image 0.9, text 0.95, decoder 0.95: those of entailment; the papers give none)
# BLIPEE, Table 2 (BLIP-2, exits trained with labels): 79.1 on test at 1.71 x. Table 3 (without labels): 62.1 at 1.45 x,
# MuE on BLIP-2 53.6 at 1.36 x.
# Not yet run here on the real data.
source "$(dirname "$0")/../benchmark.sh"
data=${1:?folder of SPLIT.tsv} checkpoint=${2:?checkpoint} split=${3:?split} out=${4:?folder for results}
DATA=$data
source "$(dirname "$0")/options.sh"
answer "$data" "$checkpoint" "$split" "$out" "${@:5}"
