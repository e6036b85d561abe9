#!/usr/bin/env bash
# Trains and compares exit methods from one checkpoint: a table, curves, saturation by layer, and pages of captions.
#   run_scripts/compare.sh DATA_SET DATA CHECKPOINT OUT [METHOD…]
#   run_scripts/compare.sh emoji/caption data/emoji examples/checkpoints/ofa_nano_caption.pt runs/compare
# DATA_SET   a folder of run_scripts with options.sh: coco, snli_ve, …, emoji/caption, emoji/entailment
# DATA       the folder of TSV files that the data set's prepare.sh made
# CHECKPOINT pretrained OFA, which every method starts from, or none: random weights
# OUT        has a folder METHOD@SEED with the training and its sweeps, valid.csv and one CSV per test split. table.md, table.csv,
#            curves.png, saturation.png (one line per training) and cases.html cover every finished method: see docs/compare.md.
#            A stopped run resumes, and finished steps are not repeated. A folder made with other settings is rejected
# METHOD     files of run_scripts/methods, in the order of the table; default: all, with tiny and medium if TINY and MEDIUM are set.
#            A method that starts from another training (DeeBERT: plain) trains that first
#   SEED (1)       seed of training; run the script with other seeds, too: the table then has their mean and range
#   TRAIN, VALID   files to train and to validate on, if not DATA/train.tsv and DATA/valid.tsv
#   TEST           names of the test splits, as "test" or "test_artist test_combinations" (default: the data set's)
#   ROWS_VALID, ROWS_TEST   rows to sweep (default: all). ROWS_CASES (50): rows that cases.html may choose from
#   KEEP_QUALITY   the share of plain's quality that the chosen setting keeps on validation (default 0.96; entailment 0.99). Of the
#                  settings that do, the one that saves most is chosen. Test data are not used to choose
#   PAPER          numbers of the papers to show in grey, as mue_coco,blipee_coco (default: the data set's). MuE's captions had a
#                  CIDEr stage, which this script does not train
#   TINY, MEDIUM   checkpoints of the smaller models; TINY_MODEL, MEDIUM_MODEL: their options (default: --arch ofa_tiny, ofa_medium)
#   EXITS (all)    layers with BLIPEE's exits. SELF_DISTIL (0.5): weight of self_distil's loss
#   TOKENIZER      of the emoji captions: plain (default) or ptb, which adds METEOR and needs Java
#   SWEEP_BATCH (32)
# LR, EPOCHS, BATCH, MICRO, ARCH, BPE_DIR, DEVICE, PROCESSES: see benchmark.sh. Every training has the same updates and schedule (the
# rate falls linearly to 0), and its last checkpoint is compared.
source "$(dirname "$0")/benchmark.sh"
[ $# -ge 4 ] || { echo "usage: compare.sh DATA_SET DATA CHECKPOINT OUT [METHOD…]; --help explains" >&2; exit 2; }
SET=$1 checkpoint=$3 out=$4
folder=$ROOT/run_scripts/$SET
[ -e "$folder/options.sh" ] || { echo "unknown data set $SET: $folder/options.sh is missing" >&2; exit 2; }
options "$2" "$folder"
shift 4
seed=${SEED:-1} fit_options=("${FIT[@]}")
read -ra tests <<< "${TEST:-test}"
train_rows=${TRAIN:-$DATA/${PREFIX:-}train.tsv} valid_rows=${VALID:-$DATA/${PREFIX:-}valid.tsv}

# method NAME: reads run_scripts/methods/NAME.sh.
#   LOSS     the criterion and its options; MODEL: the model's options; FIT: those of the data set's word loss
#   RULE     the grid of its exits: RULE.json of the data set, or of run_scripts/grids: of ARCH (ofa_tiny_), of the kind of task
#            (caption_, answer_), or of all
#   NEEDS    the variable that must name its checkpoint
#   FROM     the method whose training it starts from (default: CHECKPOINT); START: another checkpoint to start from
#   TRAINED  the method whose training it is: only the rule differs
method() {
  FROM='' START='' NEEDS='' TRAINED='' MODEL=() LOSS=() FIT=("${fit_options[@]}")
  source "$ROOT/run_scripts/methods/$1.sh"
}

# grid RULE: the file of its settings.
grid() {
  local grids=$ROOT/run_scripts/grids kind=caption one
  [ "${TASK[1]}" = mue_caption ] || kind=answer
  for one in "$folder/grids/$1.json" "$grids/${ARCH:-ofa_base}_$1.json" "$grids/${kind}_$1.json" "$grids/$1.json"; do
    [ ! -e "$one" ] || { echo "$one"; return; }
  done
  [ "$1" = split ] || { echo "no grid for the rule $1: add run_scripts/grids/$1.json" >&2; return 2; }
  echo "$SETTINGS"
}

# In the order of the table; further methods follow by name.
known=(plain tiny medium mue self_distil no_split no_layer_loss deebert pabee pabee_shared leebert leebert_patience deecap calm
  calm_softmax calm_meta calm_saturation deed deeblip leeblip blipee blipee_distill)
for file in "$ROOT"/run_scripts/methods/*.sh; do
  name=$(basename "$file" .sh)
  [[ " ${known[*]} " == *" $name "* ]] || known+=("$name")
done
methods=("$@")
if [ $# -eq 0 ]; then
  for name in "${known[@]}"; do
    needs=$(method "$name" && echo "$NEEDS")
    [ -n "$needs" ] && [ -z "${!needs:-}" ] || methods+=("$name")
  done
fi

# What cannot work is rejected before anything is trained or written.
for name in "${methods[@]}"; do
  [ -e "$ROOT/run_scripts/methods/$name.sh" ] || {
    echo "unknown method $name: choose from ${known[*]}" >&2
    exit 2
  }
  needs=$(method "$name" && echo "$NEEDS")
  [ -z "$needs" ] || [ -n "${!needs:-}" ] || { echo "method $name needs $needs=…, the pretrained checkpoint of its model" >&2; exit 2; }
  (method "$name" && grid "$RULE" > /dev/null) || exit 2
  start=$(method "$name" && echo "$START")
  [ -z "$start" ] || [ -e "$start" ] || { echo "$start, which method $name starts from, is missing" >&2; exit 2; }
done
for number in SEED EPOCHS BATCH MICRO ROWS_VALID ROWS_TEST ROWS_CASES SWEEP_BATCH; do
  [[ ${!number:-1} =~ ^[1-9][0-9]*$ ]] || { echo "$number=${!number}: give a whole number of at least 1" >&2; exit 2; }
done
[[ ${KEEP_QUALITY:-1} =~ ^(0?\.[0-9]+|1(\.[0-9]+)?)$ ]] || {
  echo "KEEP_QUALITY=$KEEP_QUALITY: give a share of plain's quality, such as 0.96" >&2
  exit 2
}
[ -e "$checkpoint" ] || [ "$checkpoint" = none ] || { echo "the checkpoint $checkpoint is missing: check the path" >&2; exit 2; }
for split in "${tests[@]}"; do
  [[ " ${HIDDEN:-} " != *" $split "* ]] || {
    echo "$SET has no published answers for $split: name a split with answers in TEST=…, such as rows that were held out" >&2
    exit 2
  }
done
test_rows=("${tests[@]/#/$DATA/${PREFIX:-}}")
test_rows=("${test_rows[@]/%/.tsv}")
[ "$checkpoint" = none ] && start=() || start=("$checkpoint")
for file in "${start[@]}" "$train_rows" "$valid_rows" "${test_rows[@]}"; do
  [ -e "$file" ] || { echo "$file is missing: make it by prepare.sh of the data set, or name TRAIN, VALID and TEST" >&2; exit 2; }
done

# One folder, one comparison: the same rows, checkpoint and training for every method.
if [ ! -e "$out/settings.txt" ] && compgen -G "$out/*@*/*.csv" > /dev/null; then
  echo "$out holds sweeps without settings.txt: choose another folder, or make tables of it by ofa-exit compare" >&2
  exit 2
fi
mkdir -p "$out/rows"
dictionary=${BPE_DIR:-$DATA}/dict.txt
settings="$(identity "$(IFS=:; echo "$train_rows:$valid_rows:$checkpoint:$dictionary:${test_rows[*]}")")
$SET ${ARCH:-ofa_base} epochs ${EPOCHS:-5} batch ${BATCH:-64} lr ${LR:-3e-5}
rows ${ROWS_VALID:-all} ${ROWS_TEST:-all} sweep batch ${SWEEP_BATCH:-32} device $DEVICE
${TASK[*]} ${SEARCH[*]} --scoring $SCORING ${SCORER[*]:-}"
# differing FILE TEXT: prints the words of TEXT that differ from those of FILE, each after the word before it, its name.
differing() {
  awk 'NR == FNR { old[FNR] = $0; next }
    old[FNR] == $0 { next }
    { count = split(old[FNR], was, " ") }
    count != NF { printf "%s%s (there: %s)", comma, $0, (old[FNR] == "" ? "nothing" : old[FNR]); comma = ", "; next }
    NF == 3 && $1 == was[1] && ($2 $3) ~ /^[0-9]+$/ { printf "%s%s (another size or date)", comma, $1; comma = ", "; next }
    { for (n = 1; n <= NF; n++) if ($n != was[n]) {
        printf "%s%s%s (there: %s)", comma, (n > 1 ? $(n - 1) " " : ""), $n, was[n]; comma = ", " } }
    END { if (comma == "") printf "fewer lines" }' "$1" <(echo "$2")
}
# same FILE TEXT WHAT: writes TEXT to FILE, or rejects another text that is there.
same() {
  [ -e "$1" ] || echo "$2" > "$1"
  [ "$(cat "$1")" = "$2" ] && return
  echo "$(dirname "$1") holds $3 of other settings: $(differing "$1" "$2"). Choose another folder, or remove it" >&2
  return 2
}
same "$out/settings.txt" "$settings" "a comparison"

# first_rows COUNT FILE OUT: writes OUT at once, since another process may read it.
first_rows() {
  if [ -e "$3" ]; then return; fi
  if [ -z "$1" ]; then ln -sf "$(realpath "$2")" "$3"; return; fi
  head -n "$1" "$2" > "$3.$$"
  mv "$3.$$" "$3"
}
first_rows "${ROWS_VALID:-}" "$valid_rows" "$out/rows/valid.tsv"
splits=(valid)
for split in "${tests[@]}"; do # ofa-exit compare takes test*.csv as tests
  [[ $split == test* ]] && name=$split || name=test_$split
  first_rows "${ROWS_TEST:-}" "$DATA/${PREFIX:-}$split.tsv" "$out/rows/$name.tsv"
  splits+=("$name")
done

# place NAME: the folder of a method's training and sweeps.
place() {
  echo "$out/$1@$seed"
}

# prepare NAME: trains what NAME needs, if it is missing; a killed training resumes.
prepare() {
  local name=$1 own init
  own=$(place "$name")
  method "$name"
  mkdir -p "$own"
  # One process per method. A training that outlives a killed script keeps the lock, too.
  exec 9> "$own/lock"
  flock -n 9 || { echo "== waiting for the process that trains or sweeps $own"; flock 9; }
  if [ -n "$TRAINED" ]; then
    (prepare "$TRAINED")
    cp "$(place "$TRAINED")/trained_parameters.txt" "$own/"
    return
  fi
  init=${START:-$checkpoint}
  if [ -n "$FROM" ]; then
    (prepare "$FROM")
    init=$(place "$FROM")/training/checkpoint_last.pt
  fi
  local epochs=${EPOCHS:-5} batch=${BATCH:-64} lr=${LR:-3e-5} schedule=decay
  same "$own/training.txt" "$(identity "$init")
${MODEL[*]} ${LOSS[*]} ${FIT[*]}" "a training"
  [ ! -e "$own/training.done" ] || return 0
  echo "== $progress: training $name in $own/training"
  fit "$train_rows" "$valid_rows" "$init" "$own/training" "${MODEL[@]}" "${LOSS[@]}" \
    --dropout 0.1 --encoder-drop-path-rate 0.1 --decoder-drop-path-rate 0.1 "${FIT[@]}" --disable-validation --seed "$seed" \
    2>&1 | tee -a "$own/train.log"
  # fairseq prints the shared parameters first, then those of experts.
  sed -n 's/.*num\. shared model params.*num\. trained: \([0-9,]*\)).*/\1/p' "$own/train.log" | tail -n 1 | tr -d , \
    > "$own/trained_parameters.txt"
  touch "$own/training.done"
}

# trained NAME: the checkpoint of its training.
trained() {
  (method "$1" && echo "$(place "${TRAINED:-$1}")/training/checkpoint_last.pt")
}

# layers CSV: prints encoder and decoder layers of the model that was swept.
layers() {
  awk -F, 'NR == 1 { for (n = 1; n <= NF; n++) column[$n] = n; next }
    { print $column["encoder_layers_full"] "," $column["decoder_layers_full"]; exit }' "$1"
}

# curve NAME SPLIT: sweeps a method's grid over rows of a split.
curve() {
  local name=$1 split=$2 csv settings plain reference=()
  csv=$(place "$name")/$split.csv plain=$(place plain)/$split.csv
  method "$name"
  settings=$(grid "$RULE")
  same "$(place "$name")/sweep.txt" "$(cat "$settings")" "sweeps"
  [ ! -e "$csv" ] || return 0
  # A smaller model is timed beside plain.
  if [ -n "$START" ] && [ -e "$plain" ]; then
    reference=(--reference "$(trained plain)" --reference-layers "$(layers "$plain")")
  fi
  echo "== $progress: sweeping $name over $split to $csv"
  ofa_exit sweep "$settings" "$csv" "$out/rows/$split.tsv" --user-dir "$USER_DIR" "${TASK[@]}" --bpe-dir "${BPE_DIR:-$DATA}" \
    --path "$(trained "$name")" --gen-subset "$split" --batch-size "${SWEEP_BATCH:-32}" "${cpu[@]}" "${SEARCH[@]}" \
    --scoring "$SCORING" "${SCORER[@]}" --run "$name" "${reference[@]}"
}

cpu=()
[ "$DEVICE" = cuda ] || cpu=(--cpu)
count=0
for name in "${methods[@]}"; do
  count=$((count + 1)) steps=$((1 + ${#splits[@]})) step=1
  progress="method $count of ${#methods[@]}, step 1 of $steps"
  prepare "$name"
  for split in "${splits[@]}"; do
    step=$((step + 1))
    progress="method $count of ${#methods[@]}, step $step of $steps"
    curve "$name" "$split"
  done
done

exec 9>&-

# Every finished method is in the table: those of METHOD first.
finished() {
  local split
  for split in "${splits[@]}"; do [ -e "$1/$split.csv" ] || return 1; done
}
others=()
for name in "${known[@]}"; do
  for place in "$out/$name"@*; do
    [[ " ${methods[*]} ${others[*]:-} " == *" $name "* ]] || ! finished "$place" || others+=("$name")
  done
done
methods+=("${others[@]}")
baseline=plain
[[ " ${methods[*]} " == *" plain "* ]] || baseline=${methods[0]}
ofa_exit compare "$out" "${methods[@]}" --baseline "$baseline" --quality "$QUALITY" ${PAPER:+--paper "$PAPER"} \
  --keep "${KEEP_QUALITY:-0.96},0.99,0.9"

# Saturation and cases show every method's first finished seed, on the first test split.
split=${splits[1]} drawn=() checkpoints=()
generation=("$out/rows/$split.tsv" --user-dir "$USER_DIR" "${TASK[@]}" --bpe-dir "${BPE_DIR:-$DATA}" --gen-subset "$split"
  --batch-size "${SWEEP_BATCH:-32}" "${cpu[@]}")
for name in "${methods[@]}"; do
  for place in "$out/$name"@*; do
    finished "$place" || continue
    seed=${place##*@} # trained and exits read it
    model=$(trained "$name")
    [[ " ${checkpoints[*]:-} " == *"=$model "* ]] || checkpoints+=("$name=$model")
    drawn+=("$name@$seed")
    break
  done
done
[ ${#drawn[@]} -gt 0 ] || exit 0
# figures.txt: what they were made of; first the methods, which are all that saturation depends on.
figures="${drawn[*]}
rows ${ROWS_CASES:-50}
$(for one in "${drawn[@]}"; do sed -n "/^$one\( \|$\)/p" "$out/options.txt"; done)"
made=$(cat "$out/figures.txt" 2>/dev/null || true)
[ "$made" != "$figures" ] || exit 0
[ "${made%%$'\n'*}" = "${drawn[*]}" ] || ofa_exit saturation --out "$out/saturation" "${checkpoints[@]}" "${generation[@]}"

# What the chosen settings generate for the first rows, every word in the colour of its layer.
mkdir -p "$out/cases"
head -n "${ROWS_CASES:-50}" "$out/rows/$split.tsv" > "$out/cases/$split.tsv"
generation[0]=$out/cases/$split.tsv
traces=() checkpoints=()
for one in "${drawn[@]}"; do
  name=${one%@*} seed=${one##*@}
  eval "chosen=($(sed -n "s/^$one //p" "$out/options.txt"))" # none: full depth
  model=$(trained "$name")
  "$BIN/fairseq-generate" "${generation[@]}" "${SEARCH[@]}" --path "$model" "${chosen[@]}" --exit-trace "$out/cases/$name.jsonl" \
    > "$out/cases/$name.log" 2>&1 || { tail -n 3 "$out/cases/$name.log" >&2; exit 1; }
  traces+=("$name=$out/cases/$name.jsonl") checkpoints+=(--checkpoint "$name=$model")
done
ofa_exit cases "${checkpoints[@]}" "$out/cases.html" "${traces[@]}" "${generation[@]}"
echo "$figures" > "$out/figures.txt"
