#!/usr/bin/env bash
# COCO captions, Karpathy's split: fine-tunes a checkpoint of OFA with MuE, or plainly. DATA: the folder that prepare.sh wrote.
#   run_scripts/coco/train.sh DATA CHECKPOINT OUT [fairseq-train arguments…]
# MuE, Table 1: OFA base CIDEr 146.7; with exits 137.0, BLEU-4 41.6, METEOR 30.6, SPICE 24.4 at -40.2 % expected time, after a
# second stage of training on CIDEr: train_cider.sh.
# Not yet run on the real data.
# MuE's settings (appendix): batch 64, lr 3e-5, 5 epochs, weight decay 0.01.
# VARIANT=plain has OFA's: batch 128, lr 1e-5, 5 epochs. Differs from OFA: the embeddings are trained.
# A static baseline: VARIANT=plain ARCH=ofa_tiny, then train_cider.sh with the same.
# VARIANT, ARCH, BATCH, LR, EPOCHS, BPE_DIR, MICRO, …: see benchmark.sh.
source "$(dirname "$0")/../benchmark.sh"
fine_tune "$@"
