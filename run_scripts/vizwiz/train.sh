#!/usr/bin/env bash
# VizWiz VQA: fine-tunes a checkpoint of OFA with MuE. DATA holds what prepare.sh made.
#   run_scripts/vizwiz/train.sh DATA CHECKPOINT OUT [fairseq-train arguments…]
# BLIPEE, Table 3, without supervision on BLIP-2 ViT-g FlanT5-XL: 29.5 at 1.45 x; MuE on BLIP-2 24.7 at 1.36 x.
# Not yet run here on the real data.
# BPE_DIR, ARCH, BATCH, MICRO, LR, EPOCHS: see benchmark.sh.
source "$(dirname "$0")/../benchmark.sh"
data=${1:?folder of train.tsv and valid.tsv} init=${2:?checkpoint of OFA to start from} out=${3:?folder to save to}
source "$(dirname "$0")/options.sh"
finetune "$data" "$init" "$out" "${@:4}"
