#!/usr/bin/env bash
# SNLI-VE visual entailment: fine-tunes a checkpoint of OFA with MuE. DATA: the folder that prepare.sh wrote.
#   run_scripts/snli_ve/train.sh DATA CHECKPOINT OUT [fairseq-train arguments…]
# MuE, Table 1: OFA base 89.3 (dev) and 89.2 (test); with exits 88.7 and 88.5 at -50 % expected time.
# Not yet run on the real data.
# MuE's settings (appendix): batch 64, lr 3e-5, 5 epochs, weight decay 0.01. BATCH, LR, EPOCHS, BPE_DIR, ARCH, MICRO, …: see benchmark.sh.
source "$(dirname "$0")/../benchmark.sh"
train_mue "$@"
