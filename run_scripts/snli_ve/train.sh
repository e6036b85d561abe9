#!/usr/bin/env bash
# SNLI-VE visual entailment: fine-tunes a checkpoint of OFA with MuE. DATA holds what prepare.sh made.
#   run_scripts/snli_ve/train.sh DATA CHECKPOINT OUT [fairseq-train arguments…]
# MuE, Table 1: OFA base 89.3 (dev) and 89.2 (test); with exits 88.7 and 88.5 at -50 % expected time.
# Not yet run here on the real data.
# BPE_DIR, ARCH, BATCH, MICRO, LR, EPOCHS: see benchmark.sh.
source "$(dirname "$0")/../benchmark.sh"
data=${1:?folder of train.tsv and valid.tsv} init=${2:?checkpoint of OFA to start from} out=${3:?folder to save to}
source "$(dirname "$0")/options.sh"
finetune "$data" "$init" "$out" "${@:4}"
