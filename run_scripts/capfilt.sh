# Shared by the scripts that train on a model's own captions (CapFilt; BLIPEE Section 3.4). common.sh comes first.
#   SAMPLES   captions to sample per image (default 10, as in the paper)
#   KEEP      captions to keep of them (default 2, as in the paper)
#   TOP_P     nucleus of the sampling (default 0.9)

# sample_captions TSV CHECKPOINT OUT ARGUMENTS…: samples captions of every image of TSV into OUT. ARGUMENTS are those of
# fairseq-generate. Finished steps are not repeated.
sample_captions() {
  local tsv=$1 checkpoint=$2 out=$3 samples=${SAMPLES:-10}
  shift 3
  mkdir -p "$out"
  [ -e "$out/images.tsv" ] || ofa_exit capfilt images "$tsv" "$out/images.tsv"
  if ! grep -qs "^Generate " "$out/generate-images.txt"; then
    generate "$out/images.tsv" --path "$checkpoint" --gen-subset images --max-len-b 16 --results-path "$out" \
      --scoring coco_caption --coco-tokenizer plain \
      --sampling --sampling-topp "${TOP_P:-0.9}" --beam "$samples" --nbest "$samples" --seed 1 "$@"
  fi
}

# filter_captions OUT ARGUMENTS…: keeps those that fit their image best in OUT/caption_synthetic.tsv. ARGUMENTS name the ranker.
filter_captions() {
  local out=$1
  shift
  ofa_exit capfilt filter "$out/images.tsv" "$out/generate-images.txt" --keep "${KEEP:-2}" \
    --out "$out/caption_synthetic.tsv" --device "$DEVICE" "$@"
}
