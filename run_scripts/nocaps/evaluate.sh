#!/usr/bin/env bash
# NoCaps validation captions: generates and scores a split (valid, valid_in_domain, valid_near_domain, valid_out_domain), at full depth or with exits:
#   run_scripts/nocaps/evaluate.sh DATA CHECKPOINT SPLIT OUT [fairseq-generate arguments, --exit-…]
#   --exit-policy similarity   (MuE, appendix: image 0.9, text 0.95, decoder theta 0.99, beta 0.95, tau 1)
#   --exit-policy confidence --exit-alpha 0.8   (checkpoints of train_blipee.sh; BLIPEE, Table 6)
# MuE: NoCaps is not in the paper. On BLIP-2 (BLIPEE, Table 1), CIDEr and SPICE: in-domain 118.1, 15.4; near-domain 115.3, 14.8;
# out-domain 118.7, 14.8; all 114.8, 14.9; 1.44 x.
# BLIPEE, Table 1, trained on COCO, CIDEr and SPICE: in-domain 122.7, 15.7; near-domain 118.1, 15.5; out-domain 123.9, 15.1; all
# 119.9, 15.6; 1.63 x (BLIP-2 OPT-2.7B). 124.3, 16.5; 120.0, 15.9; 125.5, 15.4; 122.7, 16.1; 1.51 x (FlanT5-XL).
# Not yet run on the real data.
source "$(dirname "$0")/../benchmark.sh"
evaluate "$@"
