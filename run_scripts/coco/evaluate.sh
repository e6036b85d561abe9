#!/usr/bin/env bash
# COCO captions, Karpathy's split: generates and scores a split, one of test; in full, or with exits:
#   run_scripts/coco/evaluate.sh DATA CHECKPOINT SPLIT OUT [fairseq-generate arguments, --exit-…]
#   --exit-policy similarity   (MuE, appendix: image 0.9, text 0.95, decoder theta 0.99, beta 0.95, tau 1)
# MuE, Table 1: OFA base CIDEr 146.7; with exits 137.0, BLEU-4 41.6, METEOR 30.6, SPICE 24.4 at -40.2 %, after a
# second stage of training on CIDEr: train_cider.sh. BLIPEE, Table 4 (BLIP-2 OPT): CIDEr 142.5 at 1.75 x.
# Not yet run here on the real data.
source "$(dirname "$0")/../benchmark.sh"
data=${1:?folder of SPLIT.tsv} checkpoint=${2:?checkpoint} split=${3:?split} out=${4:?folder for results}
source "$(dirname "$0")/options.sh"
answer "$data" "$checkpoint" "$split" "$out" "${@:5}"
