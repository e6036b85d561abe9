#!/usr/bin/env bash
# VQA v2: sweeps many exit settings over one checkpoint: OUT.csv and its curves, OUT.png and OUT.svg.
#   run_scripts/vqa/sweep.sh DATA CHECKPOINT SPLIT OUT [fairseq-generate arguments…]
# GRID names other settings than the default ones (ofa-exit sweep --help). For checkpoints of train_blipee.sh:
#   GRID=run_scripts/grids/blipee.json BPE_DIR=… run_scripts/vqa/sweep.sh TRAINED/rows TRAINED/exits/checkpoint_last.pt valid OUT
# on the held-out rows, where the paper selects α.
# MuE: VQA v2 is not in the paper. On BLIP-2, without labels (BLIPEE, Table 3): 53.6 on test at 1.36 x.
# BLIPEE, Table 2, with labels: 79.0 on test at 1.77 x (BLIP-2 OPT-2.7B), 79.1 at 1.71 x (FlanT5-XL). Table 3, without: 53.4 at
# 1.51 x, 62.1 at 1.45 x.
# Not yet run on the real data.
source "$(dirname "$0")/../benchmark.sh"
sweep "$@"
