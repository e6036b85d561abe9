#!/usr/bin/env bash
# VQA v2: fine-tunes a checkpoint of OFA with MuE. DATA holds what prepare.sh made.
#   run_scripts/vqa/train.sh DATA CHECKPOINT OUT [fairseq-train arguments…]
# BLIPEE, Table 2 (BLIP-2, exits trained with labels): 79.1 on test at 1.71 x. Table 3 (without labels): 62.1 at 1.45 x,
# MuE on BLIP-2 53.6 at 1.36 x.
# Not yet run here on the real data.
# BPE_DIR, ARCH, BATCH, MICRO, LR, EPOCHS: see benchmark.sh.
source "$(dirname "$0")/../benchmark.sh"
data=${1:?folder of train.tsv and valid.tsv} init=${2:?checkpoint of OFA to start from} out=${3:?folder to save to}
DATA=$data
source "$(dirname "$0")/options.sh"
finetune "$data" "$init" "$out" "${@:4}"
