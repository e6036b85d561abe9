#!/usr/bin/env bash
# Captions without labels (CapFilt): samples 10 captions per image with a checkpoint, ranks them by
# image-text similarity and keeps the best 2 in OUT/caption_synthetic.tsv:
#   run_scripts/emoji/capfilt.sh CHECKPOINT SPLIT OUT [fairseq-generate arguments…]
# RANKER    a CLIP (folder or hub name) or a trained dual encoder; default: a dual encoder is trained
#           on the captions of DATA's train split, in OUT/ranker, from stem and words of CHECKPOINT
# EPOCHS (10), SAMPLES (10), KEEP (2), TOP_P (0.9), DATA (default examples/emoji), DEVICE: see common.sh.
# Finished steps are not repeated: remove OUT to start over.
source "$(dirname "$0")/common.sh"
checkpoint=${1:?checkpoint} split=${2:?split} out=${3:?folder for results}
shift 3
samples=${SAMPLES:-10} ranker=${RANKER:-$out/ranker}
mkdir -p "$out"

if [ -e "$out/caption_synthetic.tsv" ]; then
  echo "$out/caption_synthetic.tsv exists already: remove it to filter again"
  exit 0
fi
[ -e "$out/images.tsv" ] || ofa_exit capfilt images "$DATA/caption_$split.tsv" "$out/images.tsv"
if ! grep -qs "^Generate " "$out/generate-images.txt"; then
  # shellcheck disable=SC2046
  generate "$out/images.tsv" $(task_options caption) --bpe-dir "$DATA" --path "$checkpoint" --gen-subset images \
    --batch-size 32 --num-workers 0 --max-len-b 16 --results-path "$out" --scoring coco_caption --coco-tokenizer plain \
    --sampling --sampling-topp "${TOP_P:-0.9}" --beam "$samples" --nbest "$samples" --seed 1 "$@"
fi
if [ -z "${RANKER:-}" ]; then
  module examples.emoji.capfilt_ranker train "$DATA/caption_train.tsv" "$DATA/caption_valid.tsv" "$ranker" --bpe-dir "$DATA" \
    --init-from "$checkpoint" --epochs "${EPOCHS:-10}" --batch-size "${BATCH:-128}" --device "$DEVICE"
fi
# A CLIP is its own ranker; a dual encoder is the checkpoint of the example's.
ranked=(--ranker "$ranker")
if [ -f "$ranker" ] || [ -e "$ranker/checkpoint_best.pt" ]; then
  ranked=(--ranker "$ROOT/examples/emoji/capfilt_ranker" --ranker-checkpoint "$ranker")
fi
ofa_exit capfilt filter "$out/images.tsv" "$out/generate-images.txt" "${ranked[@]}" \
  --keep "${KEEP:-2}" --out "$out/caption_synthetic.tsv" --device "$DEVICE"
