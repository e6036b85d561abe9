#!/usr/bin/env bash
# COCO captions, Karpathy's split: trains BLIPEE's exits on plain OFA. DATA: the folder that prepare.sh wrote.
#   run_scripts/coco/train_blipee.sh DATA CHECKPOINT OUT [fairseq-train arguments…]
# BLIPEE, Table 4, with labels, BLIP-2 ViT-g OPT-2.7B: CIDEr 142.5, BLEU-4 41.9, METEOR 30.8, SPICE 25.2 at 1.75 x (its speed-up
# counts parameters).
# Not yet run on the real data.
# With labels, as in the paper's table: plain OFA on the captions of 80 % of the validation images, then exits on the frozen model.
# Settings, and MODE, ROWS, EXITS, BACKBONE_EPOCHS, EPOCHS, …: see train_blipee in benchmark.sh. Then, with exits at the paper's α:
#   run_scripts/coco/evaluate.sh DATA OUT/exits/checkpoint_last.pt SPLIT RESULTS --exit-policy confidence --exit-alpha 0.8
source "$(dirname "$0")/../benchmark.sh"
train_blipee "$@"
