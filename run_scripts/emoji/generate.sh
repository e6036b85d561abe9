#!/usr/bin/env bash
# Captions or answers a split with a checkpoint; keeps results and log, as ofa-exit table reads them:
#   run_scripts/emoji/generate.sh caption|entailment CHECKPOINT SPLIT OUT [fairseq-generate arguments, --exit-…]
# DATA (default examples/emoji), DEVICE: see common.sh. A finished generation is kept.
source "$(dirname "$0")/common.sh"
task=${1:?caption or entailment} checkpoint=${2:?checkpoint} split=${3:?split} out=${4:?folder for results}
shift 4
if grep -qs "^Generate " "$out"/generate-*.txt; then
  echo "$out exists already: remove it to generate again"
  exit 0
fi
mkdir -p "$out"
case $task in
  caption) options=(--beam 5 --max-len-b 16 --scoring coco_caption) ;;
  *) options=(--scoring accuracy) ;;
esac
# shellcheck disable=SC2046
generate "$DATA/${task}_$split.tsv" $(task_options "$task") --path "$checkpoint" --gen-subset "$split" \
  --batch-size 32 --num-workers 0 --results-path "$out" "${options[@]}" "$@" 2>&1 | tee "$out/log.txt"
