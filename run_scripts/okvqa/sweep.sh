#!/usr/bin/env bash
# OK-VQA: sweeps many exit settings over one checkpoint: OUT.csv and its curves, OUT.png and OUT.svg.
#   run_scripts/okvqa/sweep.sh DATA CHECKPOINT SPLIT OUT [fairseq-generate arguments…]
# GRID names other settings than the default ones (ofa-exit sweep --help). For checkpoints of train_blipee.sh:
#   GRID=run_scripts/grids/blipee.json.
# MuE: OK-VQA is not in the paper. On BLIP-2, without labels (BLIPEE, Table 3): 33.7 at 1.36 x.
# BLIPEE, Table 3, without labels: 35.6 at 1.51 x (BLIP-2 OPT-2.7B), 40.3 at 1.45 x (FlanT5-XL).
# Not yet run on the real data.
source "$(dirname "$0")/../benchmark.sh"
sweep "$@"
