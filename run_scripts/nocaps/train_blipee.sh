#!/usr/bin/env bash
# NoCaps has no training data: its exits are those of COCO's model.
#   run_scripts/nocaps/train_blipee.sh COCO CHECKPOINT OUT [fairseq-train arguments…] [-- fairseq-generate arguments of MODE=capfilt…]
# BLIPEE, Table 1, trained on COCO, CIDEr and SPICE: in-domain 122.7, 15.7; near-domain 118.1, 15.5; out-domain 123.9, 15.1; all
# 119.9, 15.6; 1.63 x (BLIP-2 OPT-2.7B). 124.3, 16.5; 120.0, 15.9; 125.5, 15.4; 122.7, 16.1; 1.51 x (FlanT5-XL).
# BLIPEE, Table 5, without labels, CIDEr in-domain, near-domain, out-domain, all: distillation (MODE=distill) 122.3, 118.9, 123.1,
# 120.7; 1.45 x. CapFilt (MODE=capfilt, with RANKER) 123.5, 120.4, 124.7, 122.0; 1.77 x.
# Not yet run on the real data.
# MODE, RANKER and the other variables: see run_scripts/coco/train_blipee.sh --help
exec "$(dirname "$0")/../coco/train_blipee.sh" "$@"
