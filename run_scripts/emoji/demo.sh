#!/usr/bin/env bash
# The whole of MuE on real images in a few minutes on two cores: fine-tune the shipped plain OFA with
# MuE, caption pictures by an artist that no training ever saw, at full depth and with exits, and
# print quality, layers, and expected and measured time. What is done already is not done again:
# remove runs/demo to start over.
source "$(dirname "$0")/common.sh"
cd "$ROOT"
HERE=run_scripts/emoji OUT=${OUT:-runs/demo} SPLIT=${SPLIT:-test_artist} UPDATES=${UPDATES:-100}
# 95 % of the CIDEr without exits on the validation split (results/caption_valid_mue.csv); 1 = never: captions need the picture, not the prompt.
EXITS=(--exit-policy similarity --exit-image-threshold 1 --exit-text-threshold 0.9
  --exit-decoder-threshold 0.9 --exit-schedule static)
started=$SECONDS

if [ -e "$OUT/mue/done" ]; then
  echo "1/3  $OUT/mue is trained already"
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
"$BIN/python" -m ofa_exit.evaluation.figures.table "full depth=$OUT/full_depth" "with exits=$OUT/exits" \
  --csv "$OUT/table.csv"
