#!/usr/bin/env bash
# VQA v2: fine-tunes a checkpoint of OFA with MuE, or plainly. DATA: the folder that prepare.sh wrote.
#   run_scripts/vqa/train.sh DATA CHECKPOINT OUT [fairseq-train arguments…]
# MuE: VQA v2 is not in the paper. On BLIP-2, without labels (BLIPEE, Table 3): 53.6 on test at 1.36 x.
# Not yet run on the real data.
# MuE's settings (appendix): batch 64, lr 3e-5, 5 epochs, weight decay 0.01. VARIANT=plain has the same.
# VARIANT, ARCH, BATCH, LR, EPOCHS, BPE_DIR, MICRO, …: see benchmark.sh.
source "$(dirname "$0")/../benchmark.sh"
fine_tune "$@"
