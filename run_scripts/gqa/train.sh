#!/usr/bin/env bash
# GQA, balanced: fine-tunes a checkpoint of OFA with MuE, or plainly. DATA: the folder that prepare.sh wrote.
#   run_scripts/gqa/train.sh DATA CHECKPOINT OUT [fairseq-train arguments…]
# MuE: GQA is not in the paper. On BLIP-2, without labels (BLIPEE, Table 3): 37.1 at 1.36 x.
# Not yet run on the real data.
# MuE's settings (appendix): batch 64, lr 3e-5, 5 epochs, weight decay 0.01. VARIANT=plain has the same.
# VARIANT, ARCH, BATCH, LR, EPOCHS, BPE_DIR, MICRO, …: see benchmark.sh.
source "$(dirname "$0")/../benchmark.sh"
fine_tune "$@"
