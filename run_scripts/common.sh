# Shared by all run scripts: paths, and how to start fairseq on this machine.
#   DEVICE      cpu or cuda; default: cuda if torch sees one
#   PROCESSES   training processes on this machine; default 1 (on cuda fairseq uses every GPU itself)
#   DDP         how processes average gradients: legacy_ddp (default) or pytorch_ddp
#   PORT        in a step of Slurm (srun): a free port, at which the processes of all machines meet
# Under torchrun (--no-python) a script is one of its processes; see docs/scale.md.
#   OMP_NUM_THREADS   threads per process; default: the cores divided by the processes

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BIN=${BIN:-$ROOT/.venv/bin}
[ -x "$BIN/python" ] || BIN=$(dirname "$(command -v python)")
USER_DIR=$ROOT/user_dir
PROCESSES=${PROCESSES:-1}
if [ -z "${DEVICE:-}" ]; then
  DEVICE=$("$BIN/python" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')
fi
# More threads than cores are many times slower, so the processes share the cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) / PROCESSES > 0 ? $(nproc) / PROCESSES : 1))}
export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore}

# gpus: how many this process sees.
gpus() {
  "$BIN/python" -c 'import torch; print(torch.cuda.device_count())'
}

# world: how many processes share a batch, on all machines.
world() {
  if [ -n "${WORLD_SIZE:-}" ]; then # torchrun
    echo "$WORLD_SIZE"
  elif [ -z "${SLURM_PROCID:-}" ] || [ -z "${PORT:-}" ]; then
    if [ "$DEVICE" = cuda ]; then gpus; else echo "$PROCESSES"; fi
  elif [ "$SLURM_NTASKS" -gt "$SLURM_NNODES" ]; then # a task for every process
    echo "$SLURM_NTASKS"
  else # a task for every machine, which fairseq starts a process a GPU from
    echo $((SLURM_NNODES * $(gpus)))
  fi
}

# train DATA ARGUMENTS…: fairseq-train on this machine, or as one of the processes of torchrun or
# Slurm, which fairseq knows by their environment. On the CPU, PROCESSES > 1 starts that many
# processes by torchrun; they average their gradients, and --batch-size is that of each. If one
# fails, or the script is stopped, torchrun stops the others.
train() {
  local data=$1
  shift
  if [ -z "${WORLD_SIZE:-}${PORT:-}" ] && [ "${SLURM_STEP_NUM_TASKS:-1}" -gt 1 ]; then
    echo "$SLURM_STEP_NUM_TASKS Slurm tasks without PORT=… would each train alone, into one folder" >&2
    return 2
  fi
  local command=("$BIN/fairseq-train" "$data" --user-dir "$USER_DIR" --log-format simple --ddp-backend "${DDP:-legacy_ddp}")
  [ "$DEVICE" = cuda ] || command+=(--cpu --distributed-backend gloo)
  command+=("$@")
  # On the CPU fairseq's own detection divides by the number of GPUs.
  local launched=(--distributed-init-method env:// --distributed-no-spawn)
  if [ -n "${WORLD_SIZE:-}" ]; then
    # Not left to fairseq: its default is the GPUs of this machine, and with one it trains alone.
    command+=(--distributed-world-size "$WORLD_SIZE")
    [ "$DEVICE" = cuda ] || command+=("${launched[@]}" --distributed-rank "$RANK")
    "${command[@]}"
  elif [ -n "${SLURM_PROCID:-}" ] && [ -n "${PORT:-}" ]; then
    "${command[@]}" --distributed-port "$PORT" --distributed-world-size "$(world)"
  elif [ "$DEVICE" = cuda ] || [ "$PROCESSES" -eq 1 ]; then
    "${command[@]}"
  else
    command+=("${launched[@]}" --distributed-world-size "$PROCESSES")
    # In the background, so that a signal ends this script at once; the trap then stops torchrun.
    "$BIN/python" -m torch.distributed.run --standalone --nproc_per_node "$PROCESSES" --no-python \
      bash -c 'exec "$@" --distributed-rank "$RANK"' train "${command[@]}" &
    local launcher=$! status=0
    trap 'kill "$launcher" 2>/dev/null' EXIT
    wait "$launcher" || status=$?
    trap - EXIT
    return "$status"
  fi
}

# model_options plain|mue|no_split|no_layer_loss: encoder and loss of a variant.
model_options() {
  case $1 in
    plain) echo "--layer-weights last" ;;
    mue) echo "--split-modalities --layer-weights uniform" ;;
    no_split) echo "--layer-weights uniform" ;;
    no_layer_loss) echo "--split-modalities --layer-weights last" ;;
    *) echo "unknown variant $1: give plain, mue, no_split or no_layer_loss" >&2; return 2 ;;
  esac
}

# generate DATA ARGUMENTS…: fairseq-generate on this machine.
generate() {
  local data=$1 cpu=()
  shift
  [ "$DEVICE" = cuda ] || cpu=(--cpu)
  "$BIN/fairseq-generate" "$data" --user-dir "$USER_DIR" "${cpu[@]}" "$@"
}

# module NAME ARGUMENTS…: a Python module of the checkout, installed or not.
module() {
  PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" "$BIN/python" -m "$@"
}

# ofa_exit VERB ARGUMENTS…: ofa-exit of the checkout.
ofa_exit() {
  module ofa_exit "$@"
}

# draw CSV QUALITY OUT GRID ARGUMENTS…: draws a sweep's curve to OUT.png and OUT.svg; for exits of BLIPEE also against the paper's own
# speed-up. A sweep with --time-only has no quality and is not drawn.
draw() {
  local axes=()
  [[ " ${*:5} " != *" --time-only "* ]] || return 0
  ! grep -q '"confidence"' "$4" || axes=(--axes parameter_speedup,flop_reduction,measured_time_reduction)
  ofa_exit plot "$1" --quality "$2" --out "$3" "${axes[@]}"
}
