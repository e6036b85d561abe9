#!/usr/bin/env bash
# NoCaps validation captions: generates and scores a split, one of valid, valid_in_domain, valid_near_domain, valid_out_domain; in full, or with exits:
#   run_scripts/nocaps/evaluate.sh DATA CHECKPOINT SPLIT OUT [fairseq-generate arguments, --exit-…]
#   --exit-policy similarity   (MuE, appendix: image 0.9, text 0.95, decoder theta 0.99, beta 0.95, tau 1)
# BLIPEE, Table 1 (trained on COCO alone): CIDEr 122.7, SPICE 16.1 on all images at 1.51 x (BLIP-2 ViT FlanT5-XL);
# MuE on BLIP-2: 114.8, 14.9 at 1.44 x.
# Not yet run here on the real data.
source "$(dirname "$0")/../benchmark.sh"
data=${1:?folder of SPLIT.tsv} checkpoint=${2:?checkpoint} split=${3:?split} out=${4:?folder for results}
source "$(dirname "$0")/options.sh"
answer "$data" "$checkpoint" "$split" "$out" "${@:5}"
