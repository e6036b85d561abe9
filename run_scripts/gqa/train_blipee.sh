#!/usr/bin/env bash
# GQA, balanced: trains BLIPEE's exits on plain OFA. DATA: the folder that prepare.sh wrote.
#   run_scripts/gqa/train_blipee.sh DATA CHECKPOINT OUT [fairseq-train arguments…]
# BLIPEE, Table 3, without labels: 44.7 at 1.51 x (BLIP-2 OPT-2.7B), 44.0 at 1.45 x (FlanT5-XL).
# Not yet run on the real data.
# Without labels, as in the paper's table, on a CHECKPOINT that answers already; MODE=supervised: with those of 80 % of valid.tsv.
# Settings, and MODE, ROWS, EXITS, BACKBONE_EPOCHS, EPOCHS, …: see train_blipee in benchmark.sh. Then, with exits at the paper's α:
#   run_scripts/gqa/evaluate.sh DATA OUT/exits/checkpoint_last.pt SPLIT RESULTS --exit-policy confidence --exit-alpha 0.8
source "$(dirname "$0")/../benchmark.sh"
train_blipee "$@"
