#!/usr/bin/env bash
# Makes results/scst_*.csv, after results.sh: the CIDEr stage on its captions (updates of 48 images, lr 5e-5), compared with
# as many updates of cross-entropy at the same rate, three seeds each; an hour on a core. Finished steps are not repeated.
#   mue     60 updates, loss on every decoder layer, mean baseline; scored at full depth and with exits
#   plain   15 and 60 updates, loss on the last layer, greedy baseline
# Scored by greedy search and by beam 5: on the validation rows after the first 256, which selected updates, rate and
# baseline, and on the first ROWS (default 500) of the artist that training never saw.
source "$(dirname "$0")/../help.sh"
cd "$(dirname "$0")/../.." || exit 1
export DATA=${DATA:-data/emoji} OMP_NUM_THREADS=1 PROCESSES=1 CURVE=
[ -e "$DATA/references_train.tsv" ] || { echo "$DATA/references_train.tsv is missing: python -m examples.emoji.builder build" >&2; exit 1; }
here=run_scripts/emoji runs=runs/scst
quiet=(--log-interval 5 --num-workers 0 --disable-validation --no-save-optimizer-state)
set -e

mkdir -p $runs/rows results
cp "$DATA/dict.txt" $runs/rows/
tail -n +257 "$DATA/caption_valid.tsv" > $runs/rows/caption_valid.tsv
head -n "${ROWS:-500}" "$DATA/caption_test_artist.tsv" > $runs/rows/caption_test_artist.tsv
full='{"exit_policy": "none"}'
exits='{"exit_policy": "similarity", "exit_image_threshold": 1, "exit_text_threshold": 0.9, "exit_decoder_threshold": 0.9, "exit_schedule": "static"}'
echo "[$full]" > $runs/plain.json
echo "[$full, $exits]" > $runs/mue.json

# score LABEL VARIANT NAME CHECKPOINT: adds its lines to results/scst_*.csv.
score() {
  local label=$1 variant=$2 name=$3 checkpoint=$4 split beam csv out
  for split in valid test_artist; do
    for beam in 1 5; do
      csv=$runs/${name}_${split}_$beam.csv out=results/scst_${variant}_${split}_beam$beam.csv
      [ -e "$csv" ] || DATA=$runs/rows $here/sweep.sh caption "$checkpoint" $split $runs/$variant.json "$csv" --beam $beam --run "$label"
      if [ "$label" = start ]; then cp "$csv" "$out"; else tail -n +2 "$csv" >> "$out"; fi
    done
  done
}

# stage VARIANT BASELINE UPDATES: continues the training of results.sh in both ways.
stage() {
  local variant=$1 baseline=$2 updates=$3 init=runs/caption_ft_$1/checkpoint_last.pt seed out
  for seed in 1 2 3; do
    out=$runs/${variant}_scst_${updates}_$seed
    [ -e "$out.done" ] || rm -rf "$out" # without the optimizer's state its updates would count from 0
    [ -e "$out.done" ] || BASELINE=$baseline $here/scst.sh "$variant" "$init" "$out" "$updates" --seed $seed "${quiet[@]}"
    touch "$out.done"
    score "CIDEr stage, $updates updates, seed $seed" "$variant" "${out##*/}" "$out/checkpoint_last.pt"
  done
  for seed in 1 2 3; do
    out=$runs/${variant}_words_${updates}_$seed
    [ -e "$out.done" ] || rm -rf "$out"
    [ -e "$out.done" ] || BATCH=48 LR=5e-5 $here/finetune.sh caption "$variant" "$init" "$out" "$updates" \
      --warmup-updates 0 --end-learning-rate 5e-5 --seed $seed "${quiet[@]}"
    touch "$out.done"
    score "cross-entropy, $updates updates, seed $seed" "$variant" "${out##*/}" "$out/checkpoint_last.pt"
  done
}

for variant in plain mue; do
  score start $variant ${variant}_start runs/caption_ft_$variant/checkpoint_last.pt
done
stage plain greedy 15
stage plain greedy 60
stage mue mean 60
