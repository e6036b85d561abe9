#!/usr/bin/env bash
# VQA v2: trains BLIPEE's exits on plain OFA. DATA: the folder that prepare.sh wrote.
#   run_scripts/vqa/train_blipee.sh DATA CHECKPOINT OUT [fairseq-train arguments…]
# BLIPEE, Table 2, with labels: 79.0 on test at 1.77 x (BLIP-2 OPT-2.7B), 79.1 at 1.71 x (FlanT5-XL). Table 3, without: 53.4 at
# 1.51 x, 62.1 at 1.45 x.
# Not yet run on the real data.
# With labels, as in Table 2; MODE=distill: without, as in Table 3, on a CHECKPOINT that answers already.
# Settings, and MODE, ROWS, EXITS, BACKBONE_EPOCHS, EPOCHS, …: see train_blipee in benchmark.sh. Then, with exits at the paper's α:
#   run_scripts/vqa/evaluate.sh DATA OUT/exits/checkpoint_last.pt SPLIT RESULTS --exit-policy confidence --exit-alpha 0.8
source "$(dirname "$0")/../benchmark.sh"
train_blipee "$@"
