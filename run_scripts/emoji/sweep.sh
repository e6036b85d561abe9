#!/usr/bin/env bash
# Sweeps many exit settings over one checkpoint: a CSV and its accuracy-time curve, OUT.png and OUT.svg.
#   run_scripts/emoji/sweep.sh caption|entailment CHECKPOINT SPLIT GRID.json OUT.csv [fairseq-generate arguments…]
# DATA (default examples/emoji), DEVICE: see common.sh. Format of the grid: ofa-exit sweep --help
# CURVE    files to draw, without extension (default: OUT); CURVE= draws nothing
source "$(dirname "$0")/common.sh"
task=${1:?caption or entailment} checkpoint=${2:?checkpoint} split=${3:?split}
grid=${4:?grid of settings} out=${5:?CSV to write}
shift 5
case $task in
  caption) quality=CIDEr options=(--beam 5 --max-len-b 16 --scoring coco_caption --coco-tokenizer plain) ;;
  *) quality=accuracy options=(--scoring accuracy) ;;
esac
[ "$DEVICE" = cuda ] || options+=(--cpu)
# shellcheck disable=SC2046
ofa_exit sweep "$grid" "$out" "$DATA/${task}_$split.tsv" --user-dir "$USER_DIR" $(task_options "$task") \
  --path "$checkpoint" --gen-subset "$split" --batch-size 32 --num-workers 0 "${options[@]}" "$@"
curve=${CURVE-${out%.csv}}
[ -z "$curve" ] || draw "$out" "$quality" "$curve" "$grid" "$@"
