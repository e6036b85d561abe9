#!/usr/bin/env bash
# COCO captions, Karpathy's split: sweeps many exit settings over one checkpoint: OUT.csv and its curves, OUT.png and OUT.svg.
#   run_scripts/coco/sweep.sh DATA CHECKPOINT SPLIT OUT [fairseq-generate arguments…]
# GRID names other settings than the default ones (ofa-exit sweep --help). For checkpoints of train_blipee.sh:
#   GRID=run_scripts/grids/blipee.json BPE_DIR=… run_scripts/coco/sweep.sh TRAINED/rows TRAINED/exits/checkpoint_last.pt valid OUT
# on the held-out rows, where the paper selects α.
# MuE, Table 1: OFA base CIDEr 146.7; with exits 137.0, BLEU-4 41.6, METEOR 30.6, SPICE 24.4 at -40.2 % expected time, after a
# second stage of training on CIDEr: train_cider.sh.
# BLIPEE, Table 4, with labels, BLIP-2 ViT-g OPT-2.7B: CIDEr 142.5, BLEU-4 41.9, METEOR 30.8, SPICE 25.2 at 1.75 x (its speed-up
# counts parameters).
# Not yet run on the real data.
source "$(dirname "$0")/../benchmark.sh"
sweep "$@"
