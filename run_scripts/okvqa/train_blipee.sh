#!/usr/bin/env bash
# OK-VQA: trains BLIPEE's exits on plain OFA. DATA: the folder that prepare.sh wrote.
#   run_scripts/okvqa/train_blipee.sh DATA CHECKPOINT OUT [fairseq-train arguments…]
# BLIPEE, Table 3, without labels: 35.6 at 1.51 x (BLIP-2 OPT-2.7B), 40.3 at 1.45 x (FlanT5-XL).
# Not yet run on the real data.
# Without labels, as in the paper's table, on a CHECKPOINT that answers already. Differs from the paper: trained on train.tsv. The
# paper trains on 80 % of the validation split, on which results are reported.
# Settings, and MODE, ROWS, EXITS, BACKBONE_EPOCHS, EPOCHS, …: see train_blipee in benchmark.sh. Then, with exits at the paper's α:
#   run_scripts/okvqa/evaluate.sh DATA OUT/exits/checkpoint_last.pt SPLIT RESULTS --exit-policy confidence --exit-alpha 0.8
source "$(dirname "$0")/../benchmark.sh"
train_blipee "$@"
