#!/usr/bin/env bash
# Trains and compares exit methods from one checkpoint: a table, curves, saturation by layer, and pages of captions.
#   run_scripts/compare.sh DATA_SET DATA CHECKPOINT OUT [METHOD…]
#   run_scripts/compare.sh emoji/caption data/emoji examples/checkpoints/ofa_nano_caption.pt runs/compare
# DATA_SET   a folder of run_scripts with options.sh: coco, snli_ve, …, emoji/caption, emoji/entailment
# DATA       folder of the TSV files that its prepare.sh made
# CHECKPOINT pretrained OFA, which every method starts from
# OUT        one folder per method: its training, and sweeps on validation (valid.csv) and test (test.csv). A stopped run resumes,
#            and finished steps are not repeated. A folder made by other settings is rejected. Tables and figures are in OUT:
#            table.md, table.csv, curves.png, saturation.png (every training of MuE's kind), cases.html; see docs/compare.md
# METHOD     files of run_scripts/methods; default: all but tiny. Each says what it trains and by which rule it exits. The order is
#            that of the table. A method that starts from another one's training (DeeBERT: plain) trains that first.
# SEED (1)   of training, which is in OUT/METHOD@SEED. Run it with other seeds, too: the table has their mean and range
# ROWS_VALID, ROWS_TEST   rows to sweep (default: all); TEST: the test split (default: the data set's)
# LR, EPOCHS, BATCH, MICRO, ARCH, BPE_DIR, DEVICE, PROCESSES: see benchmark.sh. Every method has the same updates, and its last
# checkpoint is compared.
# Thresholds are chosen on validation: the setting that saves most while it keeps KEEP of plain's quality. Test is read once.
source "$(dirname "$0")/benchmark.sh"
SET=${1:?data set: a folder of run_scripts with options.sh} checkpoint=${3:?pretrained checkpoint} out=${4:?folder for the comparison}
folder=$ROOT/run_scripts/$SET
[ -e "$folder/options.sh" ] || { echo "$SET is no data set: $folder/options.sh is missing" >&2; exit 2; }
options "${2:?folder of the TSV files}" "$folder"
shift 4
methods=("$@")
if [ $# -eq 0 ]; then # a reference first, and all but tiny, which needs a checkpoint of its own
  methods=(plain)
  for file in "$ROOT"/run_scripts/methods/*.sh; do
    name=$(basename "$file" .sh)
    [ "$name" = plain ] || [ "$name" = tiny ] || methods+=("$name")
  done
fi
seed=${SEED:-1} test=${TEST:-test}
for method in "${methods[@]}"; do
  [ -e "$ROOT/run_scripts/methods/$method.sh" ] || {
    echo "unknown method $method: choose from $(cd "$ROOT/run_scripts/methods" && echo *.sh | sed 's/\.sh//g')" >&2
    exit 2
  }
done

# One folder, one comparison: the same rows, checkpoint and training for every method.
settings="$(identity "$DATA/${PREFIX:-}train.tsv:$DATA/${PREFIX:-}valid.tsv:$DATA/${PREFIX:-}$test.tsv:$checkpoint")
$SET ${ARCH:-ofa_base} epochs ${EPOCHS:-5} batch ${BATCH:-64} lr ${LR:-3e-5} rows ${ROWS_VALID:-all} ${ROWS_TEST:-all}"
if [ "$(cat "$out/settings.txt" 2>/dev/null || echo "$settings")" != "$settings" ]; then
  changed=$(diff "$out/settings.txt" <(echo "$settings") | sed -n 's/^> //p' | paste -sd ';') || true
  echo "$out holds a comparison of other settings, not of $changed: choose another folder, or remove it" >&2
  exit 2
fi
mkdir -p "$out/rows"
echo "$settings" > "$out/settings.txt"
head -n "${ROWS_VALID:-1000000000}" "$DATA/${PREFIX:-}valid.tsv" > "$out/rows/valid.tsv"
head -n "${ROWS_TEST:-1000000000}" "$DATA/${PREFIX:-}$test.tsv" > "$out/rows/test.tsv"

fit_options=("${FIT[@]}")
# method NAME: reads run_scripts/methods/NAME.sh.
#   LOSS     the criterion and its options; MODEL: the model's options; FIT: those of the data set's word loss
#   RULE     the grid of its exits: RULE.json, for the kind of task (caption_, answer_) where there is one
#   FROM     the method whose training it starts from (default: CHECKPOINT); START: another checkpoint to start from
#   TRAINED  the method whose training it is: only the rule differs
#   REFERENCE  set: expected time is against the layers of plain, which is a larger model
method() {
  FROM='' START='' TRAINED='' REFERENCE='' MODEL=() LOSS=() FIT=("${fit_options[@]}")
  source "$ROOT/run_scripts/methods/$1.sh"
}

# place NAME: the folder of a method's training and sweeps.
place() {
  echo "$out/$1@$seed"
}

# prepare NAME: trains what NAME needs, if it is missing; a killed training resumes.
prepare() {
  local name=$1 init
  method "$name"
  if [ -n "$TRAINED" ]; then
    (prepare "$TRAINED")
    mkdir -p "$(place "$name")"
    cp "$(place "$TRAINED")/trained_parameters.txt" "$(place "$name")/"
    return
  fi
  init=${START:-$checkpoint}
  if [ -n "$FROM" ]; then
    (prepare "$FROM")
    init=$(place "$FROM")/training/checkpoint_last.pt
  fi
  local training epochs=${EPOCHS:-5} batch=${BATCH:-64} lr=${LR:-3e-5} schedule=decay
  training=$(place "$name")/training
  [ ! -e "$training.done" ] || return 0
  echo "== training $name: $training"
  mkdir -p "$(dirname "$training")"
  fit "$DATA/${PREFIX:-}train.tsv" "${VALID:-$DATA/${PREFIX:-}valid.tsv}" "$init" "$training" "${MODEL[@]}" "${LOSS[@]}" \
    --dropout 0.1 --encoder-drop-path-rate 0.1 --decoder-drop-path-rate 0.1 "${FIT[@]}" --disable-validation --seed "$seed" \
    2>&1 | tee -a "$(dirname "$training")/train.log"
  # What fairseq prints when training starts: num. model params: … (num. trained: …)
  sed -n 's/.*num. trained: \([0-9,]*\)).*/\1/p' "$(dirname "$training")/train.log" | tail -n 1 | tr -d , \
    > "$(dirname "$training")/trained_parameters.txt"
  touch "$training.done"
}

# grid RULE: the file of its settings; the data set's own first. split and joint: SETTINGS of the data set, and those beside it.
grid() {
  local grids=$ROOT/run_scripts/grids kind=caption one
  [ "${TASK[1]}" = mue_caption ] || kind=answer
  for one in "$folder/grids/$1.json" "$grids/${kind}_$1.json" "$grids/$1.json"; do
    [ ! -e "$one" ] || { echo "$one"; return; }
  done
  case $1 in
    split) echo "$SETTINGS" ;;
    *) echo "no grid for the rule $1: add run_scripts/grids/$1.json" >&2; return 2 ;;
  esac
}

# curve NAME SPLIT: sweeps a method's grid over rows of a split.
curve() {
  local name=$1 split=$2 csv trained checkpoint reference=()
  csv=$(place "$name")/$split.csv
  [ ! -e "$csv" ] || return 0
  method "$name"
  trained=${TRAINED:-$name}
  checkpoint=$(place "$trained")/training/checkpoint_last.pt
  [ -z "$REFERENCE" ] || reference=(--reference-layers "$(layers_of "$(place plain)/valid.csv")")
  mkdir -p "$(dirname "$csv")"
  echo "== sweeping $name over $split: $csv"
  ofa_exit sweep "$(grid "$RULE")" "$csv" "$out/rows/$split.tsv" --user-dir "$USER_DIR" "${TASK[@]}" --bpe-dir "${BPE_DIR:-$DATA}" \
    --path "$checkpoint" --gen-subset "$split" --batch-size "${SWEEP_BATCH:-32}" "${cpu[@]}" "${SEARCH[@]}" \
    --scoring "$SCORING" "${SCORER[@]}" --run "$name" "${reference[@]}"
}

# layers_of CSV: the layers of encoder and decoder in a sweep's first line, as 6,6.
layers_of() {
  "$BIN/python" -c '
import csv, sys
row = next(csv.DictReader(open(sys.argv[1])))
print(row["encoder_layers_full"] + "," + row["decoder_layers_full"])' "$1"
}

cpu=()
[ "$DEVICE" = cuda ] || cpu=(--cpu)
for name in "${methods[@]}"; do
  prepare "$name"
  for split in valid test; do curve "$name" "$split"; done
done

baseline=plain
[[ " ${methods[*]} " == *" plain "* ]] || baseline=${methods[0]}
ofa_exit compare "$out" "${methods[@]}" --baseline "$baseline" --quality "$QUALITY" ${PAPER:+--paper "$PAPER"} \
  --keep "${KEEP:-0.96},0.99,0.9"

# generation: options of model and data that saturation and cases share.
generation=("$out/rows/test.tsv" --user-dir "$USER_DIR" "${TASK[@]}" --bpe-dir "${BPE_DIR:-$DATA}" --gen-subset test
  --batch-size "${SWEEP_BATCH:-32}" "${cpu[@]}")
checkpoints=()
for name in "${methods[@]}"; do
  method "$name"
  [ -n "$TRAINED" ] || checkpoints+=("$name=$(place "$name")/training/checkpoint_last.pt")
done
[ -e "$out/saturation.png" ] || ofa_exit saturation --out "$out/saturation" "${checkpoints[@]}" "${generation[@]}"

# exits NAME: the options of the setting that the table chose for a method; none where it chose none.
exits() {
  "$BIN/python" -c '
import csv, sys
rows = [row for row in csv.DictReader(open(sys.argv[1])) if row["method"] == sys.argv[2] and row["rule"].startswith("keeps")]
setting = rows[0]["setting"] if rows else ""
options = dict(part.split("=", 1) for part in setting.split() if part.startswith("exit_"))
if options:
    options.setdefault("exit_policy", "similarity")
print(*(f"--{name.replace(chr(95), chr(45))}={value}" for name, value in options.items()))' "$out/table.csv" "$1"
}

# What the chosen settings generate for the first rows, every word in the colour of its layer.
if [ ! -e "$out/cases.html" ]; then
  mkdir -p "$out/cases"
  head -n "${ROWS_CASES:-50}" "$out/rows/test.tsv" > "$out/cases/test.tsv"
  generation[0]=$out/cases/test.tsv
  traces=() checkpoints=()
  for name in "${methods[@]}"; do
    method "$name"
    read -ra chosen <<< "$(exits "$name")"
    [ ${#chosen[@]} -gt 0 ] || continue
    trained=$(place "${TRAINED:-$name}")/training/checkpoint_last.pt
    "$BIN/fairseq-generate" "${generation[@]}" "${SEARCH[@]}" --path "$trained" "${chosen[@]}" \
      --exit-trace "$out/cases/$name.jsonl" > "$out/cases/$name.log" 2>&1
    traces+=("$name=$out/cases/$name.jsonl") checkpoints+=(--checkpoint "$name=$trained")
  done
  [ ${#traces[@]} -eq 0 ] || ofa_exit cases "${checkpoints[@]}" "$out/cases.html" "${traces[@]}" "${generation[@]}"
fi
