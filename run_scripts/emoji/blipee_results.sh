#!/usr/bin/env bash
# Makes every results/blipee_*, after results.sh: trains exits on its plain models as in the paper and in ablations, sweeps α,
# and adds MuE's exits for comparison; about three hours on two cores. Finished steps are not repeated and a stopped
# training resumes. Remove a file to sweep it again.
#   supervised, distill, distill_usual, capfilt     Eqs. 4 and 5 as printed, KL in the usual direction, synthetic captions
#   no_adversarial, no_words, untrained             without Eqs. 2 and 3, without Eq. 4, without both (Figure 4a)
# The results in results/ were trained with updates in turn, and with a learning rate that first halves 3 epochs after the
# warm-up. So are these (--blipee-updates alternate --lr-scheduler step): 800 updates, 600 for entailment; half of them train the
# feature classifiers. 400 without feature classifiers. `short` is
# the supervised training with half the updates; both are compared on validation. ROWS (default 1000):
# rows of the test split. Settings are selected on validation and reported on the test split.
source "$(dirname "$0")/../help.sh"
cd "$(dirname "$0")/../.." || exit 1
export DATA=${DATA:-data/emoji} OMP_NUM_THREADS=1
[ -e "$DATA/dict.txt" ] || { echo "$DATA is missing: python -m examples.emoji.builder build" >&2; exit 1; }
here=run_scripts/emoji grids=run_scripts/emoji/grids runs=runs/blipee rows=${ROWS:-1000}
[ -x .venv/bin/python ] && python=.venv/bin/python || python=python
set -e

# exits NAME UPDATES ARGUMENTS…: trains runs/blipee/NAME; the task is what NAME begins with.
exits() {
  local name=$1 task=${1%%_*} updates=$2
  shift 2
  [ -e "$runs/$name.done" ] && return
  BATCH=64 EXITS=1,2,3,4 PROCESSES=${PROCESSES:-2} $here/blipee.sh "$task" "runs/${task}_ft_plain/checkpoint_last.pt" "$runs/$name" "$updates" \
    --log-interval 20 --num-workers 0 --seed 1 --disable-validation --save-interval-updates 100 --keep-interval-updates 1 \
    --blipee-updates alternate --lr-scheduler step "$@"
  touch "$runs/$name.done"
}

# curve TASK NAME SPLITS GRID LABEL CHECKPOINT ARGUMENTS…: sweeps the splits.
curve() {
  local task=$1 name=$2 splits=$3 grid=$4 label=$5 checkpoint=$6 split csv
  shift 6
  for split in $splits; do
    csv=results/blipee_${task}_${split}_$name.csv
    [ -e "$csv" ] || CURVE= DATA=runs/rows $here/sweep.sh "$task" "$checkpoint" "$split" "$grids/$grid.json" "$csv" --run "$label" "$@"
  done
}

mkdir -p $runs/third $runs/synthetic runs/rows results
cp "$DATA/dict.txt" runs/rows/
for task in caption entailment; do
  cp "$DATA/${task}_valid.tsv" runs/rows/
  head -n "$rows" "$DATA/${task}_test_artist.tsv" > "runs/rows/${task}_test_artist.tsv"
done

exits caption_supervised 800
PROCESSES=1 exits caption_short 400
exits caption_no_adversarial 400 --adversarial-weight 0
MODE=distill exits caption_distill 800
exits caption_no_words 800 --word-weight 0
# One update, which trains the feature classifiers alone: exits start as copies of the backbone's layers and stay so.
PROCESSES=1 exits caption_untrained 1
exits entailment_supervised 600
MODE=distill exits entailment_distill 600
MODE=distill exits caption_distill_usual 800 --kl-direction final_to_exit

# CapFilt on every third image of the training split; their captions train only the ranker.
awk 'NR % 3 == 1' "$DATA/caption_train.tsv" > $runs/third/caption_third.tsv
cp "$DATA"/{dict.txt,caption_train.tsv,caption_valid.tsv} $runs/third/
BATCH=128 DATA=$runs/third $here/capfilt.sh runs/caption_ft_plain/checkpoint_last.pt third $runs/capfilt
cp $runs/capfilt/caption_synthetic.tsv $runs/synthetic/caption_train.tsv
cp "$DATA"/{dict.txt,caption_valid.tsv} $runs/synthetic/
DATA=$runs/synthetic exits caption_capfilt 800

supervised=$runs/caption_supervised/checkpoint_last.pt
trained() { curve "$1" "$2" "$3" blipee "$4" "$runs/$1_$2/checkpoint_last.pt"; }
both="valid test_artist"
trained caption supervised "$both" supervised
trained caption short "$both" "supervised, 400 updates"
trained caption distill "$both" distillation
trained caption capfilt "$both" CapFilt
trained caption distill_usual valid "distillation, KL(final, exit)"
trained caption no_adversarial valid "without adversarial loss"
trained caption no_words valid "without CE"
trained entailment supervised "$both" supervised
trained entailment distill "$both" distillation
trained caption untrained valid "without both (untrained)"
curve caption exits valid blipee_exits "supervised, fewer exits" $supervised
curve caption exits test_artist blipee_exits_1_3 "supervised, fewer exits" $supervised
# add_mue TASK VARIANT: copies MuE's exits from results.sh; k is 0 in their parameter_speedup.
add_mue() {
  local split
  for split in valid test_artist; do
    sed "s/^plain OFA,/MuE's exits on the backbone,/" "results/$1_${split}_$2.csv" > "results/blipee_$1_${split}_$2.csv"
  done
}
add_mue caption mue
add_mue caption plain
add_mue entailment plain

# Figure 2: quality after every layer, and at every exit.
[ -e results/blipee_caption_layers.csv ] || $python -m ofa_exit layers results/blipee_caption_layers runs/rows/caption_valid.tsv \
  --user-dir user_dir --task mue_caption --patch-image-size 64 --code-dict-size 0 --num-bins 0 --cpu --num-workers 0 \
  --path $runs/caption_supervised/checkpoint_last.pt --gen-subset valid --batch-size 32 --beam 5 --max-len-b 16 \
  --scoring coco_caption --coco-tokenizer plain

for task in caption entailment; do
  case $task in caption) quality=CIDEr ;; *) quality=accuracy ;; esac
  for valid in results/blipee_${task}_valid_*.csv; do
    test=${valid/_valid_/_test_artist_}
    [ -e "$test" ] || test=
    # If the test split was not swept with the setting, choose reports it; the others still have to be selected.
    $python -m ofa_exit choose --quality $quality --keep 0.99 --by parameter_speedup \
      --baseline results/blipee_${task}_valid_supervised.csv "$valid" ${test:+"$test"} || true
  done | tee results/blipee_${task}_chosen.txt
done

# draw OUT SPLIT QUALITY NAMES…
draw() {
  local out=$1 split=$2 quality=$3
  shift 3
  $python -m ofa_exit plot "${@/#/results/blipee_${split}_}" --quality "$quality" \
    --axes parameter_speedup,flop_reduction --out "results/$out"
}
draw blipee_caption_valid caption_valid CIDEr {supervised,short,exits,distill,capfilt,mue,plain}.csv
draw blipee_caption_test_artist caption_test_artist CIDEr {supervised,short,exits,distill,capfilt,mue,plain}.csv
draw blipee_ablation caption_valid CIDEr {supervised,no_adversarial,no_words,untrained}.csv
draw blipee_entailment_valid entailment_valid accuracy {supervised,distill,plain}.csv
draw blipee_entailment_test_artist entailment_test_artist accuracy {supervised,distill,plain}.csv
