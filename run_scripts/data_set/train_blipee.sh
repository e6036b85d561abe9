#!/usr/bin/env bash
# Trains BLIPEE's exits on plain OFA. DATA: the folder that prepare.sh wrote.
#   run_scripts/NAME/train_blipee.sh DATA CHECKPOINT OUT [fairseq-train arguments…] [-- fairseq-generate arguments of MODE=capfilt…]
# Settings, and MODE, ROWS, EXITS, BACKBONE_EPOCHS, EPOCHS, …: see train_blipee in benchmark.sh. Then, with exits at the paper's α:
#   run_scripts/NAME/evaluate.sh DATA OUT/exits/checkpoint_last.pt SPLIT RESULTS --exit-policy confidence --exit-alpha 0.8
source "$(dirname "$0")/../benchmark.sh"
train_blipee "$@"
