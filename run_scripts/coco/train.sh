#!/usr/bin/env bash
# COCO captions, Karpathy's split: fine-tunes a checkpoint of OFA with MuE. DATA: the folder that prepare.sh wrote.
#   run_scripts/coco/train.sh DATA CHECKPOINT OUT [fairseq-train arguments…]
# MuE, Table 1: OFA base CIDEr 146.7; with exits 137.0, BLEU-4 41.6, METEOR 30.6, SPICE 24.4 at -40.2 % expected time, after a
# second stage of training on CIDEr: train_cider.sh.
# Not yet run on the real data.
# MuE's settings (appendix): batch 64, lr 3e-5, 5 epochs, weight decay 0.01. BATCH, LR, EPOCHS, BPE_DIR, ARCH, MICRO, …: see benchmark.sh.
source "$(dirname "$0")/../benchmark.sh"
train_mue "$@"
