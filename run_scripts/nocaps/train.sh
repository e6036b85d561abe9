#!/usr/bin/env bash
# NoCaps has no training data: its model is COCO's.
#   run_scripts/nocaps/train.sh COCO CHECKPOINT OUT [fairseq-train arguments…]
# BLIPEE, Table 1 (trained on COCO alone): CIDEr 122.7, SPICE 16.1 on all images at 1.51 x (BLIP-2 ViT FlanT5-XL);
# MuE on BLIP-2: 114.8, 14.9 at 1.44 x.
# Not yet run here on the real data.
exec "$(dirname "$0")/../coco/train.sh" "$@"
