#!/usr/bin/env bash
# Captions without labels (CapFilt): samples 10 captions per image with a checkpoint, ranks them by
# image-text similarity and keeps the best 2 in OUT/caption_synthetic.tsv:
#   run_scripts/emoji/capfilt.sh CHECKPOINT SPLIT OUT [fairseq-generate arguments…]
# RANKER    a CLIP (folder or hub name) or a trained dual encoder; default: a dual encoder is trained
#           on the captions of DATA's train split, in OUT/ranker, from stem and words of CHECKPOINT
# EPOCHS (10), SAMPLES (10), KEEP (2), TOP_P (0.9), DATA (default examples/emoji), DEVICE: see common.sh.
# Finished steps are not repeated: remove OUT to start over.
source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/../capfilt.sh"
checkpoint=${1:?checkpoint} split=${2:?split} out=${3:?folder for results}
shift 3
ranker=${RANKER:-$out/ranker}

if [ -e "$out/caption_synthetic.tsv" ]; then
  echo "$out/caption_synthetic.tsv exists already: remove it to filter again"
  exit 0
fi
# shellcheck disable=SC2046
sample_captions "$DATA/caption_$split.tsv" "$checkpoint" "$out" $(task_options caption) --bpe-dir "$DATA" \
  --batch-size 32 --num-workers 0 "$@"
if [ -z "${RANKER:-}" ]; then
  module examples.emoji.capfilt_ranker train "$DATA/caption_train.tsv" "$DATA/caption_valid.tsv" "$ranker" --bpe-dir "$DATA" \
    --init-from "$checkpoint" --epochs "${EPOCHS:-10}" --batch-size "${BATCH:-128}" --device "$DEVICE"
fi
# A CLIP is its own ranker; a dual encoder is the checkpoint of the example's.
ranked=(--ranker "$ranker")
if [ -f "$ranker" ] || [ -e "$ranker/checkpoint_best.pt" ]; then
  ranked=(--ranker "$ROOT/examples/emoji/capfilt_ranker" --ranker-checkpoint "$ranker")
fi
filter_captions "$out" "${ranked[@]}"
