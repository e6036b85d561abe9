#!/usr/bin/env bash
# Sweeps many exit settings over one checkpoint: OUT.csv and its curves, OUT.png and OUT.svg.
#   run_scripts/NAME/sweep.sh DATA CHECKPOINT SPLIT OUT [fairseq-generate arguments…]
# GRID names other settings than the default ones (ofa-exit sweep --help), such as run_scripts/grids/blipee.json for checkpoints of
# train_blipee.sh.
source "$(dirname "$0")/../benchmark.sh"
sweep "$@"
