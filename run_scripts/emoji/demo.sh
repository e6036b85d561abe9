#!/usr/bin/env bash
# MuE on real images in a few minutes on two cores: fine-tunes the shipped plain OFA with MuE, captions
# images by an artist that training never saw, at full depth and with exits, and prints quality,
# layers, expected time and measured time. Finished steps are not repeated: remove runs/demo to start
# over.
source "$(dirname "$0")/common.sh"
cd "$ROOT"
HERE=run_scripts/emoji OUT=${OUT:-runs/demo} SPLIT=${SPLIT:-test_artist} UPDATES=${UPDATES:-100}
# 95 % of the CIDEr without exits on validation (results/caption_valid_mue.csv). 1 = never exit: captions need the image, not the prompt.
EXITS=(--exit-policy similarity --exit-image-threshold 1 --exit-text-threshold 0.9
  --exit-decoder-threshold 0.9 --exit-schedule static)
started=$SECONDS

if [ -e "$OUT/mue/done" ]; then
  echo "1/3  $OUT/mue is already trained"
else
  echo "1/3  training ($UPDATES updates): $OUT/mue"
  BATCH=64 $HERE/finetune.sh caption mue examples/checkpoints/ofa_nano_caption.pt "$OUT/mue" "$UPDATES" \
    --log-format tqdm --validate-interval 1000 --seed 1
  touch "$OUT/mue/done"
fi
echo "2/3  captioning $SPLIT at full depth, then with exits"
$HERE/generate.sh caption "$OUT/mue/checkpoint_last.pt" "$SPLIT" "$OUT/full_depth"
$HERE/generate.sh caption "$OUT/mue/checkpoint_last.pt" "$SPLIT" "$OUT/exits" "${EXITS[@]}"
echo
echo "3/3  captions of $SPLIT ($((SECONDS - started)) s in all)"
ofa_exit table "full depth=$OUT/full_depth" "with exits=$OUT/exits" \
  --csv "$OUT/table.csv"
