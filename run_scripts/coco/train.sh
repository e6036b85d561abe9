#!/usr/bin/env bash
# COCO captions, Karpathy's split: fine-tunes a checkpoint of OFA with MuE. DATA holds what prepare.sh made.
#   run_scripts/coco/train.sh DATA CHECKPOINT OUT [fairseq-train arguments…]
# MuE, Table 1: OFA base CIDEr 146.7; with exits 137.0, BLEU-4 41.6, METEOR 30.6, SPICE 24.4 at -40.2 %, after a
# second stage of training on CIDEr: train_cider.sh. BLIPEE, Table 4 (BLIP-2 OPT): CIDEr 142.5 at 1.75 x.
# Not yet run here on the real data.
# BPE_DIR, ARCH, BATCH, MICRO, LR, EPOCHS: see benchmark.sh.
source "$(dirname "$0")/../benchmark.sh"
data=${1:?folder of train.tsv and valid.tsv} init=${2:?checkpoint of OFA to start from} out=${3:?folder to save to}
source "$(dirname "$0")/options.sh"
finetune "$data" "$init" "$out" "${@:4}"
