# Shared by the emoji scripts: the data, the task's options, and training.

source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
DATA=${DATA:-$ROOT/examples/emoji}

# task_options caption|entailment: options of both training and generation.
task_options() {
  case $1 in
    caption) echo "--task mue_caption" ;;
    entailment) echo "--task mue_snli_ve" ;;
    *) echo "unknown task $1: caption or entailment" >&2; return 2 ;;
  esac
  echo "--patch-image-size 64 --code-dict-size 0 --num-bins 0"
}

# valid_options caption|entailment: the score that selects the best checkpoint.
valid_options() {
  case $1 in
    caption)
      echo "--eval-cider --eval-args {\"beam\":1,\"max_len_b\":16} --best-checkpoint-metric cider" ;;
    entailment) echo "--eval-acc --best-checkpoint-metric acc" ;;
  esac
  echo "--maximize-best-checkpoint-metric"
}

# layers_of CHECKPOINT: the options of training that give a model its numbers of layers; none if they cannot be read.
layers_of() {
  PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" "$BIN/python" -c '
import sys
import ofa_exit.plugin
from ofa_exit.plugin.saved_arguments import saved_arguments
model = saved_arguments(sys.argv[1], "{}")
if model is not None:
    print("--encoder-layers", model.encoder_layers, "--decoder-layers", model.decoder_layers)' "$1"
}

# fit TASK VARIANT OUT UPDATES LR ARGUMENTS…: trains an ofa_nano; a killed run resumes.
fit() {
  local task=$1 variant=$2 out=$3 updates=$4 lr=$5 task_flags model_flags
  shift 5
  task_flags=$(task_options "$task")
  model_flags=$(model_options "$variant")
  # shellcheck disable=SC2046,SC2086
  train "$DATA/${task}_train.tsv,$DATA/${task}_valid.tsv" $task_flags $model_flags $(valid_options "$task") \
    --arch ofa_nano --criterion mue_loss --label-smoothing 0.1 --report-accuracy \
    --optimizer adam --adam-betas "(0.9, 0.999)" --weight-decay 0.01 --clip-norm 1.0 \
    --lr "$lr" --lr-scheduler polynomial_decay --total-num-update "$updates" \
    --warmup-updates $((updates / 20)) --max-update "$updates" \
    --batch-size $((${BATCH:-128} / $(world))) --batch-size-valid 32 \
    --save-dir "$out" --no-epoch-checkpoints "$@"
}
