# Shared by the scripts of the published data sets: training with MuE and BLIPEE, answering, and sweeps. options.sh in the folder of
# the script sets TASK (options of training and generation), CHOOSE (the score that selects the best checkpoint),
# FIT (options of MuE's training), SEARCH (options of generation), SCORING (fairseq's name of the scorer), HIDDEN (splits without
# published answers), QUALITY (the column that sweeps draw), SETTINGS (their default grid), BLIPEE (the paper's mode), and
# OFA_BATCH and OFA_LR (batch and learning rate of OFA's own scripts).
#   BPE_DIR   folder of dict.txt, encoder.json and vocab.bpe of OFA's release; default: the data's folder
#   ARCH      ofa_base (default, as in MuE), ofa_tiny, ofa_medium, …: that of CHECKPOINT
#   VARIANT   of train.sh and train_cider.sh: mue (default), no_split or no_layer_loss (MuE without Eq. 3 or Eq. 12), or plain:
#             OFA's own training, a joint encoder and the loss on the last layer. sweep.sh takes it to choose the default
#             grid: plain and no_split have one encoder threshold
#   LR, EPOCHS, BATCH   settings of training; the defaults are the paper's, those of plain are OFA's. See the script
#   MICRO     samples per forward pass on one device; gradients are summed up to BATCH (default 8)
#   VALID     file to validate on (default: DATA/valid.tsv); the first rows of a large file are enough: head -n 5000
#   SAVE_UPDATES   also save every SAVE_UPDATES updates (default 2000) and keep the last such checkpoint, from which a killed run
#                  resumes. fairseq validates whenever it saves. 0: save only at the end of an epoch
#   GRID      settings of a sweep; run_scripts/grids/blipee.json has BLIPEE's
#   SHARDS, SHARD   evaluate.sh: number of processes that share the rows, and number of this one, from 0;
#                   SHARDS without SHARD merges their results in OUT (further arguments: those of ofa-exit merge)
# DEVICE, PROCESSES, DDP, PORT: see common.sh. All GPUs of one machine are used by default; for several machines (torchrun,
# Slurm) see docs/scale.md.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/capfilt.sh"

# options DATA [FOLDER]: sets the options of a data set; by default of the one whose script runs.
options() {
  DATA=$1
  source "${2:-$(dirname "$0")}/options.sh"
}

# sizes: sets SIZES, options of a task, and defaults of training. With BPE_DIR they are those of OFA's release. Without it the model is
# small and has the words of DATA/dict.txt. IMAGE_SIZE and AUGMENT: see options.sh of the data set.
sizes() {
  SIZES=(--patch-image-size "${IMAGE_SIZE:-480}")
  if [ -z "${BPE_DIR:-}" ]; then
    CIDER_EPOCHS=${EPOCHS:-3} CIDER_LR=${LR:-5e-5} # of the second stage
    SIZES=(--patch-image-size "${IMAGE_SIZE:-128}" --code-dict-size 0 --num-bins 0)
    ARCH=${ARCH:-ofa_nano} BATCH=${BATCH:-64} MICRO=${MICRO:-64} LR=${LR:-3e-4} EPOCHS=${EPOCHS:-10}
  fi
  [ -z "${AUGMENT:-}" ] || SIZES+=(--augment "$AUGMENT")
}

# rows FILE: prints its number of lines, from the index that training writes next to it.
rows() {
  PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" "$BIN/python" -c '
import pathlib, sys
from ofa_exit.data.row_index import row_offsets
print(len(row_offsets(pathlib.Path(sys.argv[1]))[1]) - 1)' "$1"
}

# identity PATHS: prints names (joined by colons), sizes and modification times of files.
identity() {
  local one paths
  IFS=: read -ra paths <<< "$1"
  for one in "${paths[@]}"; do echo "$one $(stat -Lc '%s %Y' "$one" 2>/dev/null || true)"; done
}

# fit TRAIN VALID CHECKPOINT OUT ARGUMENTS…: trains with its caller's epochs, batch, lr and schedule (decay: linearly to 0, as OFA;
# halve: by half every three epochs, as BLIPEE). A killed run resumes.
fit() {
  local train=$1 valid=$2 init=$3 out=$4 micro=${MICRO:-8} processes shared
  shift 4
  [ -e "$train" ] || { echo "$train is missing: prepare.sh makes it" >&2; return 2; }
  processes=$(world)
  # Reduce MICRO until updates of BATCH samples are possible.
  while [ "$micro" -gt 1 ] && [ $((batch % (processes * micro))) -ne 0 ]; do micro=$((micro - 1)); done
  shared=$((processes * micro))
  if [ $((batch % shared)) -ne 0 ]; then
    echo "BATCH=$batch cannot be shared by $processes processes: set it to a multiple of them" >&2
    return 2
  fi
  # fairseq resumes from any checkpoint in OUT, so the rest must be the same; only epochs may be added.
  local command
  command="$(identity "$train:${BPE_DIR:-$DATA}/dict.txt:$init") ${ARCH:-ofa_base} $batch $lr $schedule $*${SIZES[*]:+ ${SIZES[*]}}"
  if [ "$(cat "$out/command.txt" 2>/dev/null)" != "$command" ]; then
    if [ -e "$out/checkpoint_last.pt" ]; then
      echo "$out holds a training from another checkpoint, on other rows or with other settings: choose another folder, or remove it" >&2
      return 2
    fi
    mkdir -p "$out"
    echo "$command" > "$out/command.txt"
  fi
  local per_epoch updates rate precision=() start=(--finetune-from-model "$init")
  [ "$init" != none ] || start=()
  per_epoch=$((($(rows "$train") + batch - 1) / batch)) updates=$((per_epoch * epochs))
  case $schedule in
    decay) rate=(polynomial_decay --total-num-update "$updates" --warmup-updates $((updates * 6 / 100))) ;;
    halve) rate=(step_from_start --lr-decay 0.5 --lr-deacy-period $((3 * per_epoch)) --warmup-updates 500) ;;
  esac
  [ "$DEVICE" != cuda ] || precision=(--fp16 --fp16-scale-window 512)
  train "$train,$valid" "${TASK[@]}" --bpe-dir "${BPE_DIR:-$DATA}" --arch "${ARCH:-ofa_base}" "${start[@]}" \
    --optimizer adam --adam-betas "(0.9, 0.999)" --adam-eps 1e-08 --weight-decay 0.01 --clip-norm 1.0 \
    --lr "$lr" --lr-scheduler "${rate[@]}" \
    --max-epoch "$epochs" --batch-size "$micro" --update-freq $((batch / shared)) --save-dir "$out" --no-epoch-checkpoints \
    --save-interval-updates "${SAVE_UPDATES:-2000}" --keep-interval-updates 1 --fixed-validation-seed 7 "${precision[@]}" "$@"
}

# fine_tune DATA CHECKPOINT OUT ARGUMENTS…: fine-tunes on DATA/train.tsv as VARIANT says. mue has a loss on every decoder layer (MuE,
# Eqs. 12 and 13). CHECKPOINT none: random weights.
fine_tune() {
  options "${1:?folder of train.tsv and valid.tsv}"
  local init=${2:?checkpoint of OFA to start from} out=${3:?folder to save to} variant=${VARIANT:-mue} model_flags
  model_flags=$(model_options "$variant")
  local epochs=${EPOCHS:-5} batch=${BATCH:-64} lr=${LR:-3e-5} schedule=decay
  if [ "$variant" = plain ]; then
    batch=${BATCH:-${OFA_BATCH:-64}} lr=${LR:-${OFA_LR:-3e-5}}
  fi
  # shellcheck disable=SC2086
  fit "$DATA/train.tsv" "${VALID:-$DATA/valid.tsv}" "$init" "$out" $model_flags --criterion mue_loss --dropout 0.1 \
    --encoder-drop-path-rate 0.1 --decoder-drop-path-rate 0.1 "${FIT[@]}" "${CHOOSE[@]}" "${@:4}"
}

# cider_stage DATA CHECKPOINT OUT ARGUMENTS…: trains on CIDEr (criterion mue_scst) with DATA/train_stage2.tsv, as VARIANT says.
# LENGTH: longest caption of the search (default 16). FREQUENCIES: see coco/train_cider.sh.
cider_stage() {
  options "${1:?folder of train_stage2.tsv and valid.tsv}"
  local model_flags init=${2:?checkpoint of train.sh} out=${3:?folder to save to}
  local frequencies=${FREQUENCIES:-$3/document_frequencies.npz}
  model_flags=$(model_options "${VARIANT:-mue}")
  [ -e "$frequencies" ] || ofa_exit document-frequencies "$DATA/train_stage2.tsv" "$frequencies"
  local epochs=${CIDER_EPOCHS:-${EPOCHS:-3}} batch=${BATCH:-64} lr=${CIDER_LR:-${LR:-1e-5}} schedule=decay
  # shellcheck disable=SC2086
  fit "$DATA/train_stage2.tsv" "${VALID:-$DATA/valid.tsv}" "$init" "$out" $model_flags --criterion mue_scst \
    --cider-frequencies "$frequencies" --scst-baseline mean --dropout 0 --freeze-resnet \
    --scst-args '{"beam":5,"max_len_b":'"${LENGTH:-16}"',"no_repeat_ngram_size":3,"sampling":false}' "${CHOOSE[@]}" "${@:4}"
}

# own_captions TSV CHECKPOINT OUT ARGUMENTS…: makes OUT/caption_synthetic.tsv, the captions of CHECKPOINT for the images of TSV that
# fit them best (Section 3.4, CapFilt). ARGUMENTS are those of fairseq-generate.
own_captions() {
  local tsv=$1 checkpoint=$2 out=$3 ranker=${RANKER:-openai/clip-vit-large-patch14} source
  shift 3
  source="$(identity "$tsv:${BPE_DIR:-$DATA}/dict.txt:$checkpoint:$ranker") ${SAMPLES:-10} ${KEEP:-2} ${TOP_P:-0.9} $*"
  if [ -e "$out/source.txt" ] && [ "$(cat "$out/source.txt")" != "$source" ]; then
    echo "$out holds captions of other images, of another checkpoint or with other settings: choose another folder, or remove it" >&2
    return 2
  fi
  [ ! -e "$out/caption_synthetic.tsv" ] || return 0
  if [ -n "${WORLD_SIZE:-}${PORT:-}" ]; then
    echo "$out/caption_synthetic.tsv is missing: start this script in one process, which makes it before it trains" >&2
    return 2
  fi
  mkdir -p "$out"
  echo "$source" > "$out/source.txt"
  sample_captions "$tsv" "$checkpoint" "$out" "${TASK[@]}" --bpe-dir "${BPE_DIR:-$DATA}" --batch-size "${MICRO:-8}" "$@"
  filter_captions "$out" --ranker "$ranker"
}

# train_blipee DATA CHECKPOINT OUT ARGUMENTS…: BLIPEE's two stages (Sections 3.2 and 3.3): plain OFA into OUT/backbone, then exits on
# the frozen backbone into OUT/exits. Without labels (Section 3.4) exits are trained on CHECKPOINT itself, whose last layer teaches
# them; the decoder is fed the labels' words (y* of Eq. 5), or the model's own caption where a row has none. ARGUMENTS go to both
# stages. In MODE=capfilt, those after -- are fairseq-generate's, for the sampling of captions.
# Section 4, Training: 80 % of the validation split to train on and 20 % to select by; 10 epochs of the backbone and 3 of the exits;
# Adam, lr 1e-5, halved every 3 epochs; batch size 16. Table 6: betas 0.9 and 0.999, warm-up 500. The paper does not give weight decay
# and clipping; OFA's are used. Differs from the paper: its exits are in language models of 24 and 32 layers, after 3, 5, 7, 9, 12, 20
# and 22 of 24, which is 1, 2, 3 and 5 of OFA base's 6 (ofa-exit layers finds those that fit a checkpoint). OFA encodes the images, not
# a frozen BLIP-2, and the prompts are OFA's.
#   MODE    supervised (with labels), distill (from the final layer) or, for captions, capfilt (on the captions of CHECKPOINT that fit
#           their image best); default: the mode of the paper's table for the data set
#   ROWS    folder of train.tsv and valid.tsv to train on (default: the 80 and 20 % in OUT/rows, made if missing; before several
#           processes start, make them once: ofa-exit holdout --help)
#   EXITS   decoder layers with an exit (default 1,2,3,5)
#   BACKBONE_EPOCHS (10; 0 skips the first stage), EPOCHS (3), LR (1e-5), BATCH (16)
#   RANKER  CLIP of MODE=capfilt, a folder or a name on the hub, or a Python file (ofa-exit capfilt filter --help); default:
#           openai/clip-vit-large-patch14, the paper's. SAMPLES, KEEP, TOP_P: see capfilt.sh
train_blipee() {
  options "${1:?folder of valid.tsv}"
  local init=${2:?checkpoint to start from} out=${3:?folder to save to} mode=${MODE:-$BLIPEE} kind candidates=() sampling=() number
  shift 3
  for ((number = 1; number <= $#; number++)); do
    [ "${!number}" = -- ] || continue
    sampling=("${@:number + 1}")
    set -- "${@:1:number - 1}"
  done
  local rows=${ROWS:-$out/rows} batch=${BATCH:-16} lr=${LR:-1e-5} schedule=halve epochs=${BACKBONE_EPOCHS:-10}
  case ${TASK[1]} in mue_caption) kind=caption ;; mue_vqa) kind=question ;; mue_visdial) kind=dialogue ;; esac
  if [ "$mode" = capfilt ] && [ "$kind" != caption ]; then
    echo "MODE=capfilt makes captions: choose supervised or distill" >&2
    return 2
  fi
  [ ! -e "$DATA/answers.txt" ] || candidates=(--candidates "$DATA/answers.txt")
  if [ -z "${ROWS:-}" ]; then
    local source
    source=$(identity "$DATA/valid.tsv:${candidates[1]:-}")
    if [ -e "$rows/valid.tsv" ] && [ "$(cat "$rows/source.txt" 2>/dev/null)" != "$source" ]; then
      echo "$rows was made from another $DATA/valid.tsv: remove $out, or choose another folder" >&2
      return 2
    fi
    if [ ! -e "$rows/valid.tsv" ]; then # which holdout writes last
      mkdir -p "$rows"
      echo "$source" > "$rows/source.txt"
      ofa_exit holdout "$kind" "$DATA/valid.tsv" "$rows" "${candidates[@]}"
    fi
  fi
  local train=$rows/train.tsv
  if [ "$mode" = capfilt ]; then
    own_captions "$train" "$init" "$out/capfilt" "${sampling[@]}"
    train=$out/capfilt/caption_synthetic.tsv mode=supervised
  elif [ "$mode" = supervised ] && [ "$epochs" -gt 0 ]; then
    fit "$train" "${VALID:-$rows/valid.tsv}" "$init" "$out/backbone" --criterion mue_loss --layer-weights last \
      "${CHOOSE[@]}" "$@"
    init=$out/backbone/checkpoint_best.pt
  fi
  epochs=${EPOCHS:-3}
  # Where an update trains exits alone (--adversarial-weight 0), gradients cannot be one flat tensor.
  fit "$train" "${VALID:-$rows/valid.tsv}" "$init" "$out/exits" --exit-layers "${EXITS:-1,2,3,5}" \
    --criterion blipee_adversarial --blipee-mode "$mode" --fp16-no-flatten-grads "$@"
}

# evaluate DATA CHECKPOINT SPLIT OUT ARGUMENTS…: generates and scores; a finished generation in OUT is kept. Without --exit-…
# options the model runs at full depth. A shard goes to its own folder, OUT/SPLIT-shardI. The score is the last line of
# OUT/generate-SPLIT.txt.
evaluate() {
  options "${1:?folder of SPLIT.tsv}"
  local checkpoint=${2:?checkpoint} split=${3:?split} out=${4:?folder for results} shard=()
  shift 4
  if [ -n "${SHARD:-}" ]; then
    out=$out/$split-shard$SHARD
    shard=(--num-shards "${SHARDS:?number of shards}" --shard-id "$SHARD")
    if [[ " $* " == *" --exit-trace"* && " $* " != *"/$split-shard$SHARD/"* ]]; then
      echo "each shard needs its own trace: --exit-trace $out/trace.jsonl, then merge with --trace trace.jsonl" >&2
      return 2
    fi
  fi
  local command
  command="$(identity "$DATA/$split.tsv:${BPE_DIR:-$DATA}/dict.txt:$checkpoint") $*"
  # A merged result belongs to its shards.
  if [ -n "${SHARDS:-}" ] && [ -z "${SHARD:-}" ]; then command+=" $(cat "$out/$split"-shard*/command-"$split".txt 2>/dev/null || true)"; fi
  if grep -qs "^Generate " "$out/generate-$split.txt"; then
    if [ "$(cat "$out/command-$split.txt" 2>/dev/null)" != "$command" ]; then
      echo "$out holds $split of other data, another checkpoint or other options: choose another folder, or remove it" >&2
      return 2
    fi
    echo "$split in $out exists already: remove it to generate again"
    return
  fi
  local scoring=(--scoring "$SCORING")
  if [[ " ${HIDDEN:-} " == *" $split "* ]]; then
    scoring=()
    echo "the answers of $split are not published; for its server see ofa-exit submit --help"
  fi
  mkdir -p "$out"
  echo "$command" > "$out/command-$split.txt"
  if [ -n "${SHARDS:-}" ] && [ -z "${SHARD:-}" ]; then
    local folders=() number
    for ((number = 0; number < SHARDS; number++)); do folders+=("$out/$split-shard$number"); done
    ofa_exit merge "$out" "${folders[@]}" "${scoring[@]}" "$@"
    return
  fi
  generate "$DATA" "${TASK[@]}" ${BPE_DIR:+--bpe-dir "$BPE_DIR"} --path "$checkpoint" --gen-subset "$split" \
    --batch-size "${MICRO:-8}" --results-path "$out" "${SEARCH[@]}" "${scoring[@]}" "${shard[@]}" "$@" 2>&1 | tee "$out/log.txt"
  tail -n 1 "$out/generate-$split.txt" 2>/dev/null || true
}

# sweep DATA CHECKPOINT SPLIT OUT ARGUMENTS…: writes OUT.csv and its curve, OUT.png and OUT.svg.
sweep() {
  options "${1:?folder of SPLIT.tsv}"
  local checkpoint=${2:?checkpoint} split=${3:?split} out=${4:?files to write, without extension} cpu=() model_flags grid
  shift 4
  model_flags=$(model_options "${VARIANT:-mue}")
  [[ $model_flags == *--split-modalities* ]] && grid=${GRID:-$SETTINGS} || grid=${GRID:-${SETTINGS%.json}_joint.json}
  [ "$DEVICE" = cuda ] || cpu=(--cpu)
  ofa_exit sweep "$grid" "$out.csv" "$DATA" --user-dir "$USER_DIR" "${TASK[@]}" ${BPE_DIR:+--bpe-dir "$BPE_DIR"} \
    --path "$checkpoint" --gen-subset "$split" --batch-size "${MICRO:-8}" "${cpu[@]}" "${SEARCH[@]}" --scoring "$SCORING" "$@"
  draw "$out.csv" "$QUALITY" "$out" "$grid" "$@"
}
