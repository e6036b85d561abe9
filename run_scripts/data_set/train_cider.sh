#!/usr/bin/env bash
# The second stage of captioning, which trains what train.sh made on CIDEr (criterion mue_scst), with MuE or plainly.
#   run_scripts/NAME/train_cider.sh DATA CHECKPOINT OUT [fairseq-train arguments…]
# Updates of 64 images, 3 epochs, lr 1e-5 (a small model: 5e-5); otherwise as run_scripts/coco/train_cider.sh, which explains it.
# VARIANT, ARCH, BPE_DIR, BATCH, MICRO, LR, EPOCHS, VALID, SAVE_UPDATES: see benchmark.sh.
source "$(dirname "$0")/../benchmark.sh"
cider_stage "$@"
