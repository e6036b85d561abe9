#!/usr/bin/env bash
# SNLI-VE visual entailment: sweeps many exit settings over one checkpoint: OUT.csv and its curves, OUT.png and OUT.svg.
#   run_scripts/snli_ve/sweep.sh DATA CHECKPOINT SPLIT OUT [fairseq-generate arguments…]
# GRID names other settings than the default ones (ofa-exit sweep --help).
# MuE, Table 1: OFA base 89.3 (dev) and 89.2 (test); with exits 88.7 and 88.5 at -50 % expected time.
# BLIPEE: SNLI-VE is not in the paper.
# Not yet run on the real data.
source "$(dirname "$0")/../benchmark.sh"
sweep "$@"
