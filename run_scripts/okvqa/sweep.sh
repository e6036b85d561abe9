#!/usr/bin/env bash
# OK-VQA: many exit settings over one checkpoint, as OUT.csv and curves.
#   run_scripts/okvqa/sweep.sh DATA CHECKPOINT SPLIT OUT [fairseq-generate arguments…]
# GRID names other settings than the default ones (python -m ofa_exit.sweep --help).
source "$(dirname "$0")/../benchmark.sh"
data=${1:?folder of SPLIT.tsv} checkpoint=${2:?checkpoint} split=${3:?split} out=${4:?where to write, without ending}
source "$(dirname "$0")/options.sh"
sweep "$data" "$checkpoint" "$split" "$out" "${@:5}"
