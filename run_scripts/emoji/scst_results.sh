#!/usr/bin/env bash
# results/scst_*.csv, after results.sh: the CIDEr stage (60 updates of 48 pictures, lr 5e-5, greedy baseline) on its plain
# captions, and as many updates of cross-entropy at the same rate beside it, three seeds each; half an hour on a core. What
# is done already is not done again. Scored by greedy search and by beam 5 on the validation rows behind the first 256, by
# which the updates (of 15, 60, 180) and the rate were chosen, and on the first ROWS (default 500) of the artist no
# training saw.
source "$(dirname "$0")/../help.sh"
cd "$(dirname "$0")/../.." || exit 1
export DATA=${DATA:-data/emoji} OMP_NUM_THREADS=1 PROCESSES=1 CURVE=
[ -e "$DATA/references_train.tsv" ] || { echo "$DATA/references_train.tsv is not there: python -m ofa_exit.data.emoji build" >&2; exit 1; }
here=run_scripts/emoji runs=runs/scst init=runs/caption_ft_plain/checkpoint_last.pt
quiet=(--log-interval 5 --num-workers 0 --disable-validation --no-save-optimizer-state)
set -e

mkdir -p $runs/rows results
cp "$DATA/dict.txt" $runs/rows/
tail -n +257 "$DATA/caption_valid.tsv" > $runs/rows/caption_valid.tsv
head -n "${ROWS:-500}" "$DATA/caption_test_artist.tsv" > $runs/rows/caption_test_artist.tsv
echo '[{"exit_policy": "none"}]' > $runs/full_depth.json

# score LABEL NAME CHECKPOINT: a line in each of results/scst_*.csv.
score() {
  local label=$1 name=$2 checkpoint=$3 split beam csv out
  for split in valid test_artist; do
    for beam in 1 5; do
      csv=$runs/${name}_${split}_$beam.csv out=results/scst_${split}_beam$beam.csv
      [ -e "$csv" ] || DATA=$runs/rows $here/sweep.sh caption "$checkpoint" $split $runs/full_depth.json "$csv" --beam $beam --run "$label"
      [ "$name" = init ] && cp "$csv" "$out" || tail -n 1 "$csv" >> "$out"
    done
  done
}

score "start" init $init
for seed in 1 2 3; do
  [ -e $runs/scst_$seed.done ] || BASELINE=greedy $here/scst.sh plain $init $runs/scst_$seed 60 --seed $seed "${quiet[@]}"
  touch $runs/scst_$seed.done
  score "CIDEr stage seed $seed" scst_$seed $runs/scst_$seed/checkpoint_last.pt
done
for seed in 1 2 3; do
  [ -e $runs/words_$seed.done ] || BATCH=48 LR=5e-5 $here/finetune.sh caption plain $init $runs/words_$seed 60 \
    --warmup-updates 0 --end-learning-rate 5e-5 --seed $seed "${quiet[@]}"
  touch $runs/words_$seed.done
  score "cross-entropy seed $seed" words_$seed $runs/words_$seed/checkpoint_last.pt
done
