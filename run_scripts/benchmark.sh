# Shared by the scripts of the published data sets: training with MuE and BLIPEE, answering, and sweeps. The data set's options.sh,
# beside the script, sets TASK (what training and generation have in common), CHOOSE (what validation chooses the best checkpoint by),
# FIT (of MuE's training alone), SEARCH (of generation alone), SCORING (fairseq's name of the scorer), HIDDEN (splits without
# published answers), QUALITY (the column that sweeps draw), SETTINGS (their default grid) and BLIPEE (the paper's mode).
#   BPE_DIR   folder of dict.txt, encoder.json and vocab.bpe of OFA's release; default: the data's folder
#   ARCH      ofa_base, as in MuE
#   LR, EPOCHS, BATCH   of training; the defaults are the paper's, see the script
#   MICRO     samples at a time on one device; gradients are summed up to BATCH (default 8)
#   VALID     file to validate on (default: DATA/valid.tsv); of a large one its first rows will do: head -n 5000
#   SAVE_UPDATES   also save after every so many updates, by default 2000, and keep the last such checkpoint, from which a killed run
#                  goes on. fairseq validates whenever it saves. 0: at the end of an epoch alone
#   GRID      settings of a sweep; run_scripts/grids/blipee.json are BLIPEE's
#   SHARDS, SHARD   evaluate.sh: how many processes share the rows, and which of them this is, from 0;
#                   SHARDS alone merges what they left in OUT (more arguments: those of
#                   python -m ofa_exit.cli.merge)
# DEVICE, PROCESSES, DDP, PORT: see common.sh. Several GPUs of one machine are used by themselves; on
# several machines by torchrun or Slurm, see docs/scale.md.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# options DATA: those of the data set whose script runs.
options() {
  DATA=$1
  source "$(dirname "$0")/options.sh"
}

# rows FILE: its number of lines, from the index that training keeps beside it.
rows() {
  PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" "$BIN/python" -c '
import pathlib, sys
from ofa_exit.data.row_index import row_offsets
print(len(row_offsets(pathlib.Path(sys.argv[1]))[1]) - 1)' "$1"
}

# identity PATHS: names of files, one or several joined by colons, with their sizes and times of change.
identity() {
  local one paths
  IFS=: read -ra paths <<< "$1"
  for one in "${paths[@]}"; do echo "$one $(stat -Lc '%s %Y' "$one" 2>/dev/null || true)"; done
}

# fit TRAIN VALID CHECKPOINT OUT ARGUMENTS…: trains with its caller's epochs, batch, lr and schedule (decay: to 0 in a line, as OFA;
# halve: by half every three epochs, as BLIPEE). A killed run resumes.
fit() {
  local train=$1 valid=$2 init=$3 out=$4 micro=${MICRO:-8} processes shared
  shift 4
  [ -e "$train" ] || { echo "$train is not there: prepare.sh makes it" >&2; return 2; }
  processes=$(world)
  # Fewer at a time than MICRO where only that makes updates of BATCH samples.
  while [ "$micro" -gt 1 ] && [ $((batch % (processes * micro))) -ne 0 ]; do micro=$((micro - 1)); done
  shared=$((processes * micro))
  if [ $((batch % shared)) -ne 0 ]; then
    echo "BATCH=$batch cannot be shared by $processes processes: set it to a multiple" >&2
    return 2
  fi
  # fairseq goes on from what OUT holds, whatever it was trained with: epochs may be added, all else must be the same.
  local command
  command="$(identity "$train:${BPE_DIR:-$DATA}/dict.txt:$init") ${ARCH:-ofa_base} $batch $lr $schedule $*"
  if [ "$(cat "$out/command.txt" 2>/dev/null)" != "$command" ]; then
    if [ -e "$out/checkpoint_last.pt" ]; then
      echo "$out holds a training from another checkpoint, on other rows or with other settings: choose another folder, or remove it" >&2
      return 2
    fi
    mkdir -p "$out"
    echo "$command" > "$out/command.txt"
  fi
  local per_epoch updates rate precision=()
  per_epoch=$((($(rows "$train") + batch - 1) / batch)) updates=$((per_epoch * epochs))
  case $schedule in
    decay) rate=(polynomial_decay --total-num-update "$updates" --warmup-updates $((updates * 6 / 100))) ;;
    halve) rate=(step --lr-decay 0.5 --lr-deacy-period $((3 * per_epoch)) --warmup-updates 500) ;;
  esac
  [ "$DEVICE" != cuda ] || precision=(--fp16 --fp16-scale-window 512)
  train "$train,$valid" "${TASK[@]}" --bpe-dir "${BPE_DIR:-$DATA}" --arch "${ARCH:-ofa_base}" --finetune-from-model "$init" \
    --optimizer adam --adam-betas "(0.9, 0.999)" --adam-eps 1e-08 --weight-decay 0.01 --clip-norm 1.0 \
    --lr "$lr" --lr-scheduler "${rate[@]}" \
    --max-epoch "$epochs" --batch-size "$micro" --update-freq $((batch / shared)) --save-dir "$out" --no-epoch-checkpoints \
    --save-interval-updates "${SAVE_UPDATES:-2000}" --keep-interval-updates 1 --fixed-validation-seed 7 "${precision[@]}" "$@"
}

# train_mue DATA CHECKPOINT OUT ARGUMENTS…: fine-tunes on DATA/train.tsv with a loss on every decoder layer (MuE, Eqs. 12 and 13).
train_mue() {
  options "${1:?folder of train.tsv and valid.tsv}"
  local init=${2:?checkpoint of OFA to start from} out=${3:?folder to save to}
  local epochs=${EPOCHS:-5} batch=${BATCH:-64} lr=${LR:-3e-5} schedule=decay
  fit "$DATA/train.tsv" "${VALID:-$DATA/valid.tsv}" "$init" "$out" --split-modalities --criterion mue_loss --dropout 0.1 \
    --encoder-drop-path-rate 0.1 --decoder-drop-path-rate 0.1 "${FIT[@]}" "${CHOOSE[@]}" "${@:4}"
}

# train_blipee DATA CHECKPOINT OUT ARGUMENTS…: BLIPEE's two stages (Sections 3.2 and 3.3), plain OFA into OUT/backbone and exits on it,
# frozen, into OUT/exits. Without labels (Section 3.4) exits are trained on CHECKPOINT itself, whose last layer teaches them; what the
# decoder is fed are still the labels' words (y* of Eq. 5). ARGUMENTS go to both stages.
# Section 4, Training: on 80 % of the validation split, with 20 % to choose by; 10 epochs of the backbone and 3 of the exits; Adam, lr
# 1e-5, halved every 3 epochs; batches of 16. Table 6: betas 0.9 and 0.999, warm-up 500. Not told: weight decay and clipping (those of
# OFA here). Differs from the paper: its exits are in language models of 24 and 32 layers, at 3, 5, 7, 9, 12, 20, 22 of 24, which is 1,
# 2, 3 and 5 of OFA base's 6; python -m ofa_exit.cli.layers finds those that fit a checkpoint. Images are seen through OFA, not frozen
# BLIP-2, and asked by OFA's prompts.
#   MODE    supervised (with labels) or distill (from the final layer); default: what the paper's table of the data set has
#   ROWS    folder of train.tsv and valid.tsv to train on (default: the 80 and 20 % in OUT/rows, made where they are missing; before
#           several processes start, make them once: python -m ofa_exit.prepare.holdout --help)
#   EXITS   decoder layers with an exit (default 1,2,3,5)
#   BACKBONE_EPOCHS (10; 0 leaves the first stage out), EPOCHS (3), LR (1e-5), BATCH (16)
train_blipee() {
  options "${1:?folder of valid.tsv}"
  local init=${2:?checkpoint to start from} out=${3:?folder to save to} mode=${MODE:-$BLIPEE} kind candidates=()
  shift 3
  local rows=${ROWS:-$out/rows} batch=${BATCH:-16} lr=${LR:-1e-5} schedule=halve epochs=${BACKBONE_EPOCHS:-10}
  case ${TASK[1]} in mue_caption) kind=caption ;; mue_vqa) kind=question ;; mue_visdial) kind=dialogue ;; esac
  [ ! -e "$DATA/answers.txt" ] || candidates=(--candidates "$DATA/answers.txt")
  if [ -z "${ROWS:-}" ]; then
    local source
    source=$(identity "$DATA/valid.tsv:${candidates[1]:-}")
    if [ -e "$rows/valid.tsv" ] && [ "$(cat "$rows/source.txt" 2>/dev/null)" != "$source" ]; then
      echo "$rows was made of another $DATA/valid.tsv: remove $out, or choose another folder" >&2
      return 2
    fi
    if [ ! -e "$rows/valid.tsv" ]; then # what holdout writes last
      mkdir -p "$rows"
      echo "$source" > "$rows/source.txt"
      module ofa_exit.prepare.holdout "$kind" "$DATA/valid.tsv" "$rows" "${candidates[@]}"
    fi
  fi
  if [ "$mode" = supervised ] && [ "$epochs" -gt 0 ]; then
    fit "$rows/train.tsv" "${VALID:-$rows/valid.tsv}" "$init" "$out/backbone" --criterion mue_loss --layer-weights last \
      "${CHOOSE[@]}" "$@"
    init=$out/backbone/checkpoint_best.pt
  fi
  epochs=${EPOCHS:-3}
  # One tensor of all gradients could not be updated a group at a time.
  fit "$rows/train.tsv" "${VALID:-$rows/valid.tsv}" "$init" "$out/exits" --exit-layers "${EXITS:-1,2,3,5}" \
    --criterion blipee_adversarial --blipee-mode "$mode" --fp16-no-flatten-grads "$@"
}

# evaluate DATA CHECKPOINT SPLIT OUT ARGUMENTS…: what is complete in OUT is kept. Without --exit-…
# options the model runs in full. A shard goes to a folder of its own, OUT/SPLIT-shardI. The score is the last line of
# OUT/generate-SPLIT.txt.
evaluate() {
  options "${1:?folder of SPLIT.tsv}"
  local checkpoint=${2:?checkpoint} split=${3:?split} out=${4:?folder for results} shard=()
  shift 4
  if [ -n "${SHARD:-}" ]; then
    out=$out/$split-shard$SHARD
    shard=(--num-shards "${SHARDS:?how many shards there are}" --shard-id "$SHARD")
    if [[ " $* " == *" --exit-trace"* && " $* " != *"/$split-shard$SHARD/"* ]]; then
      echo "a shard's trace is a file of its own: --exit-trace $out/trace.jsonl, then merge with --trace trace.jsonl" >&2
      return 2
    fi
  fi
  local command
  command="$(identity "$DATA/$split.tsv:${BPE_DIR:-$DATA}/dict.txt:$checkpoint") $*"
  # Merged: of the shards as they are.
  if [ -n "${SHARDS:-}" ] && [ -z "${SHARD:-}" ]; then command+=" $(cat "$out/$split"-shard*/command-"$split".txt 2>/dev/null || true)"; fi
  if grep -qs "^Generate " "$out/generate-$split.txt"; then
    if [ "$(cat "$out/command-$split.txt" 2>/dev/null)" != "$command" ]; then
      echo "$out holds $split of other data, another checkpoint or other options: choose another folder, or remove it" >&2
      return 2
    fi
    echo "$split in $out is there already: remove it to generate again"
    return
  fi
  local scoring=(--scoring "$SCORING")
  if [[ " ${HIDDEN:-} " == *" $split "* ]]; then
    scoring=()
    echo "the answers of $split are not published: for its server, python -m ofa_exit.evaluation.metrics.submission --help"
  fi
  mkdir -p "$out"
  echo "$command" > "$out/command-$split.txt"
  if [ -n "${SHARDS:-}" ] && [ -z "${SHARD:-}" ]; then
    local folders=() number
    for ((number = 0; number < SHARDS; number++)); do folders+=("$out/$split-shard$number"); done
    merge "$out" "${folders[@]}" "${scoring[@]}" "$@"
    return
  fi
  generate "$DATA" "${TASK[@]}" ${BPE_DIR:+--bpe-dir "$BPE_DIR"} --path "$checkpoint" --gen-subset "$split" \
    --batch-size "${MICRO:-8}" --results-path "$out" "${SEARCH[@]}" "${scoring[@]}" "${shard[@]}" "$@" 2>&1 | tee "$out/log.txt"
  tail -n 1 "$out/generate-$split.txt" 2>/dev/null || true
}

# sweep DATA CHECKPOINT SPLIT OUT ARGUMENTS…: OUT.csv, and its curve, OUT.png and OUT.svg.
sweep() {
  options "${1:?folder of SPLIT.tsv}"
  local checkpoint=${2:?checkpoint} split=${3:?split} out=${4:?where to write, without ending} grid=${GRID:-$SETTINGS} cpu=()
  shift 4
  [ "$DEVICE" = cuda ] || cpu=(--cpu)
  module ofa_exit.cli.sweep "$grid" "$out.csv" "$DATA" --user-dir "$USER_DIR" "${TASK[@]}" ${BPE_DIR:+--bpe-dir "$BPE_DIR"} \
    --path "$checkpoint" --gen-subset "$split" --batch-size "${MICRO:-8}" "${cpu[@]}" "${SEARCH[@]}" --scoring "$SCORING" "$@"
  draw "$out.csv" "$QUALITY" "$out" "$grid" "$@"
}
