#!/usr/bin/env bash
# NoCaps has no training data: its model is COCO's.
#   run_scripts/nocaps/train.sh COCO CHECKPOINT OUT [fairseq-train arguments…]
# VARIANT, ARCH, …: as coco/train.sh.
# MuE: NoCaps is not in the paper. On BLIP-2 (BLIPEE, Table 1), CIDEr and SPICE: in-domain 118.1, 15.4; near-domain 115.3, 14.8;
# out-domain 118.7, 14.8; all 114.8, 14.9; 1.44 x.
# Not yet run on the real data.
exec "$(dirname "$0")/../coco/train.sh" "$@"
