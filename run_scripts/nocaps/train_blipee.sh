#!/usr/bin/env bash
# NoCaps has no training data: its exits are those of COCO's model.
#   run_scripts/nocaps/train_blipee.sh COCO CHECKPOINT OUT [fairseq-train arguments…]
# BLIPEE, Table 1, trained on COCO, CIDEr and SPICE: in-domain 122.7, 15.7; near-domain 118.1, 15.5; out-domain 123.9, 15.1; all
# 119.9, 15.6; 1.63 x (BLIP-2 OPT-2.7B). 124.3, 16.5; 120.0, 15.9; 125.5, 15.4; 122.7, 16.1; 1.51 x (FlanT5-XL).
# Not yet run on the real data.
exec "$(dirname "$0")/../coco/train_blipee.sh" "$@"
