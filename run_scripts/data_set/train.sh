#!/usr/bin/env bash
# Trains with MuE, or plainly. DATA: the folder that prepare.sh wrote.
#   run_scripts/NAME/train.sh DATA CHECKPOINT OUT [fairseq-train arguments…]
# CHECKPOINT: the checkpoint of OFA to start from, or none: random weights.
# VARIANT, ARCH, BATCH, LR, EPOCHS, BPE_DIR, MICRO, …: see benchmark.sh.
source "$(dirname "$0")/../benchmark.sh"
fine_tune "$@"
