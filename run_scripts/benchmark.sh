# Shared by the scripts of the published data sets: fine-tuning with MuE, answering, and sweeps.
# A script sets, before it calls these: TASK (what training and generation have in common), FIT (of
# training alone), SEARCH (of generation alone), SCORING (fairseq's name of the scorer), HIDDEN (splits
# without published answers), QUALITY (the column that sweeps draw) and GRID (their settings).
#   BPE_DIR   folder of dict.txt, encoder.json and vocab.bpe of OFA's release; default: the data's folder
#   ARCH      ofa_base, as in the papers          LR, EPOCHS, BATCH   3e-5, 5, 64 (MuE, appendix)
#   MICRO     samples at a time on one device; gradients are summed up to BATCH (default 8)
#   SHARDS, SHARD   evaluate.sh: how many processes share the rows, and which of them this is, from 0;
#                   SHARDS alone merges what they left in OUT (more arguments: those of
#                   python -m ofa_exit.merge)
# DEVICE, PROCESSES, DDP, PORT: see common.sh. Several GPUs of one machine are used by themselves; on
# several machines by torchrun or Slurm, see docs/scale.md.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# rows FILE: its number of lines, from the index that training keeps beside it.
rows() {
  PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" "$BIN/python" -c '
import pathlib, sys
from ofa_exit.data.row_index import row_offsets
print(len(row_offsets(pathlib.Path(sys.argv[1]))[1]) - 1)' "$1"
}

# finetune DATA CHECKPOINT OUT ARGUMENTS…: DATA holds train.tsv and valid.tsv. A killed run resumes.
finetune() {
  fit "$1" "$1/train.tsv" "$2" "$3" --criterion mue_loss --dropout 0.1 --encoder-drop-path-rate 0.1 \
    --decoder-drop-path-rate 0.1 "${@:4}"
}

# fit DATA TRAIN CHECKPOINT OUT ARGUMENTS…: trains as FIT says on DATA, as fairseq-train takes it; its rows are those of TRAIN.
fit() {
  local data=$1 train=$2 init=$3 out=$4 epochs=${EPOCHS:-5} batch=${BATCH:-64} micro=${MICRO:-8} processes shared
  shift 4
  processes=$(world)
  # Fewer at a time than MICRO where only that makes updates of BATCH samples.
  while [ "$micro" -gt 1 ] && [ $((batch % (processes * micro))) -ne 0 ]; do micro=$((micro - 1)); done
  shared=$((processes * micro))
  if [ $((batch % shared)) -ne 0 ]; then
    echo "BATCH=$batch cannot be shared by $processes processes: set it to a multiple" >&2
    return 2
  fi
  local every=$((batch / shared)) updates precision=()
  updates=$((($(rows "$train") + every * shared - 1) / (every * shared) * epochs))
  [ "$DEVICE" != cuda ] || precision=(--fp16 --fp16-scale-window 512)
  train "$data" "${TASK[@]}" ${BPE_DIR:+--bpe-dir "$BPE_DIR"} --arch "${ARCH:-ofa_base}" --finetune-from-model "$init" \
    --split-modalities --optimizer adam --adam-betas "(0.9, 0.999)" --adam-eps 1e-08 --weight-decay 0.01 --clip-norm 1.0 \
    --lr "${LR:-3e-5}" --lr-scheduler polynomial_decay --total-num-update "$updates" --warmup-updates $((updates * 6 / 100)) \
    --max-epoch "$epochs" --batch-size "$micro" --update-freq "$every" --save-dir "$out" --no-epoch-checkpoints \
    --fixed-validation-seed 7 --maximize-best-checkpoint-metric "${FIT[@]}" "${precision[@]}" "$@"
}

# answer DATA CHECKPOINT SPLIT OUT ARGUMENTS…: what is complete in OUT is kept. Without --exit-…
# options the model runs in full. A shard goes to a folder of its own in OUT.
answer() {
  local data=$1 checkpoint=$2 split=$3 out=$4 shard=()
  shift 4
  if [ -n "${SHARD:-}" ]; then
    out=$out/shard$SHARD
    shard=(--num-shards "${SHARDS:?how many shards there are}" --shard-id "$SHARD")
  fi
  local command="$checkpoint $*"
  if grep -qs "^Generate " "$out/generate-$split.txt"; then
    if [ "$(cat "$out/command-$split.txt" 2>/dev/null)" != "$command" ]; then
      echo "$out holds $split of another checkpoint or other options: choose another folder, or remove it" >&2
      return 2
    fi
    echo "$split in $out is there already: remove it to generate again"
    return
  fi
  local scoring=(--scoring "$SCORING")
  if [[ " ${HIDDEN:-} " == *" $split "* ]]; then
    scoring=()
    echo "the answers of $split are not published: for its server, python -m ofa_exit.evaluation.submission --help"
  fi
  if [ -n "${SHARDS:-}" ] && [ -z "${SHARD:-}" ]; then
    local folders=() number
    for ((number = 0; number < SHARDS; number++)); do folders+=("$out/shard$number"); done
    mkdir -p "$out"
    echo "$command" > "$out/command-$split.txt"
    merge "$out" "${folders[@]}" "${scoring[@]}" "$@"
    return
  fi
  mkdir -p "$out"
  echo "$command" > "$out/command-$split.txt"
  generate "$data" "${TASK[@]}" ${BPE_DIR:+--bpe-dir "$BPE_DIR"} --path "$checkpoint" --gen-subset "$split" \
    --batch-size "${MICRO:-8}" --results-path "$out" "${SEARCH[@]}" "${scoring[@]}" "${shard[@]}" "$@" 2>&1 | tee "$out/log.txt"
}

# sweep DATA CHECKPOINT SPLIT OUT ARGUMENTS…: OUT.csv, and its curves OUT_*.png.
sweep() {
  local data=$1 checkpoint=$2 split=$3 out=$4 cpu=()
  shift 4
  [ "$DEVICE" = cuda ] || cpu=(--cpu)
  "$BIN/python" -m ofa_exit.sweep "$GRID" "$out.csv" "$data" --user-dir "$USER_DIR" "${TASK[@]}" ${BPE_DIR:+--bpe-dir "$BPE_DIR"} \
    --path "$checkpoint" --gen-subset "$split" --batch-size "${MICRO:-8}" "${cpu[@]}" "${SEARCH[@]}" --scoring "$SCORING" "$@"
  "$BIN/python" -m ofa_exit.evaluation.plots "$out.csv" --quality "$QUALITY" --out "$out"
}
