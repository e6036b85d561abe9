#!/usr/bin/env bash
# Makes the figures and tables of MuE in results/, on the full emoji build (python -m examples.emoji.builder build); about two
# hours on two cores. Finished steps are not repeated.
#   (a)  plain OFA from scratch on captions, then on entailment      1400 and 800 updates
#   from (a), equal short budgets: plain (a'), mue (b, c), no_split and no_layer_loss (d)     150 and 100 updates
# ROWS (default 1000): rows of each test split that the sweeps generate.
source "$(dirname "$0")/../help.sh"
cd "$(dirname "$0")/../.." || exit 1
export DATA=${DATA:-data/emoji} OMP_NUM_THREADS=1
[ -e "$DATA/dict.txt" ] || { echo "$DATA is missing: python -m examples.emoji.builder build" >&2; exit 1; }
here=run_scripts/emoji rows=${ROWS:-1000}
quiet=(--log-interval 20 --num-workers 0 --seed 1)
set -e

[ -e runs/caption_plain/checkpoint_last.pt ] || PROCESSES=2 $here/pretrain.sh caption runs/caption_plain 1400 \
  --validate-interval 5 "${quiet[@]}"
[ -e runs/entailment_plain/checkpoint_last.pt ] || INIT=runs/caption_plain/checkpoint_last.pt \
  $here/pretrain.sh entailment runs/entailment_plain 800 --validate-interval 2 "${quiet[@]}"

mkdir -p runs/rows results
declare -A budget=([caption]=150 [entailment]=100)
declare -A names=([plain]="plain OFA" [mue]=MuE [no_split]="MuE without split" [no_layer_loss]="MuE without layer loss")
for task in caption entailment; do
  for variant in plain mue no_split no_layer_loss; do
    out=runs/${task}_ft_$variant
    [ -e "$out/checkpoint_last.pt" ] || $here/finetune.sh $task $variant runs/${task}_plain/checkpoint_last.pt "$out" ${budget[$task]} \
      --validate-interval 100 "${quiet[@]}"
    case $variant in plain | no_split) grid=joint ;; *) grid=split ;; esac
    # Thresholds are selected on the whole validation split and reported on the tests.
    for split in valid test_artist test_combinations; do
      case $split in valid) most=100000 ;; *) most=$rows ;; esac
      head -n "$most" "$DATA/${task}_$split.tsv" > "runs/rows/${task}_$split.tsv"
      cp "$DATA/dict.txt" runs/rows/
      csv=results/${task}_${split}_$variant.csv
      [ -e "$csv" ] || CURVE= DATA=runs/rows $here/sweep.sh $task "$out/checkpoint_last.pt" $split \
        $here/$task/grids/$grid.json "$csv" --run "${names[$variant]}"
    done
  done
  case $task in caption) quality=CIDEr keep=0.96 ;; *) quality=accuracy keep=0.99 ;; esac
  for variant in plain mue no_split no_layer_loss; do
    .venv/bin/python -m ofa_exit choose --quality $quality --keep $keep \
      --baseline "results/${task}_valid_plain.csv" \
      results/${task}_{valid,test_artist,test_combinations}_$variant.csv
  done | tee "results/${task}_chosen.txt"
  for split in test_artist test_combinations; do
    .venv/bin/python -m ofa_exit plot results/${task}_${split}_*.csv --quality $quality \
      --out results/${task}_$split
  done
done
