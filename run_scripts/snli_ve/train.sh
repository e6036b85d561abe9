#!/usr/bin/env bash
# SNLI-VE visual entailment: fine-tunes a checkpoint of OFA with MuE, or plainly. DATA: the folder that prepare.sh wrote.
#   run_scripts/snli_ve/train.sh DATA CHECKPOINT OUT [fairseq-train arguments…]
# MuE, Table 1: OFA base 89.3 (dev) and 89.2 (test); with exits 88.7 and 88.5 at -50 % expected time.
# Not yet run on the real data.
# MuE's settings (appendix): batch 64, lr 3e-5, 5 epochs, weight decay 0.01.
# VARIANT=plain has OFA's: batch 256, lr 5e-5, 5 epochs. A static baseline: VARIANT=plain ARCH=ofa_tiny.
# VARIANT, ARCH, BATCH, LR, EPOCHS, BPE_DIR, MICRO, …: see benchmark.sh.
source "$(dirname "$0")/../benchmark.sh"
fine_tune "$@"
