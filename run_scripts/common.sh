# Shared by all run scripts: where things are, and how to start fairseq on this machine.
#   DEVICE      cpu or cuda; default: cuda where torch sees one
#   PROCESSES   training processes on this machine; default 1 (on cuda: fairseq uses every GPU itself)
#   DDP         how processes average gradients: legacy_ddp (default) or pytorch_ddp
#   PORT        in a step of Slurm (srun): a free port, at which the processes of all machines meet
# Under torchrun (--no-python) a script is one of its processes; see docs/scale.md.
#   OMP_NUM_THREADS   threads of each process; default: the cores shared by the processes

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
# More threads than cores collapse, so the cores are shared out.
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
# processes that average their gradients; --batch-size is then that of each. Where one fails, or the
# script is stopped, the others are stopped, too: they would wait for it for half an hour.
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
  if [ -n "${WORLD_SIZE:-}" ]; then
    # Not left to fairseq: its default is the GPUs of this machine, and with one it trains alone.
    command+=(--distributed-world-size "$WORLD_SIZE")
    # On the CPU its own detection divides by the number of GPUs.
    [ "$DEVICE" = cuda ] || command+=(--distributed-init-method env:// --distributed-rank "$RANK" --distributed-no-spawn)
    "${command[@]}"
  elif [ -n "${SLURM_PROCID:-}" ] && [ -n "${PORT:-}" ]; then
    "${command[@]}" --distributed-port "$PORT" --distributed-world-size "$(world)"
  elif [ "$DEVICE" = cuda ] || [ "$PROCESSES" -eq 1 ]; then
    "${command[@]}"
  else
    local port=$((20000 + RANDOM % 20000)) rank pids=() status=0
    trap 'kill "${pids[@]}" 2>/dev/null' EXIT
    trap 'exit 130' INT # processes in the background do not hear of it
    trap 'exit 143' TERM
    for ((rank = 0; rank < PROCESSES; rank++)); do
      "${command[@]}" --distributed-world-size "$PROCESSES" --distributed-rank "$rank" \
        --distributed-init-method "tcp://127.0.0.1:$port" --distributed-no-spawn &
      pids+=($!)
    done
    for ((rank = 0; rank < PROCESSES; rank++)); do
      wait -n || {
        status=$?
        echo "one of $PROCESSES training processes failed (status $status): stopping the others" >&2
        kill "${pids[@]}" 2>/dev/null || true
        break
      }
    done
    wait
    trap - EXIT INT TERM
    return "$status"
  fi
}

# generate DATA ARGUMENTS…: fairseq-generate on this machine.
generate() {
  local data=$1 cpu=()
  shift
  [ "$DEVICE" = cuda ] || cpu=(--cpu)
  "$BIN/fairseq-generate" "$data" --user-dir "$USER_DIR" "${cpu[@]}" "$@"
}

# module NAME ARGUMENTS…: a command of this package.
module() {
  PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" "$BIN/python" -m "$@"
}

# merge OUT FOLDER… ARGUMENTS…: the shards of a generation as one.
merge() {
  module ofa_exit.cli.merge "$@"
}

# prepare NAME ROOT OUT ARGUMENTS…: TSV files in OUT from an official release below ROOT.
prepare() {
  "$BIN/python" -m ofa_exit.prepare "$@"
}

# draw CSV QUALITY OUT GRID ARGUMENTS…: a sweep's curve as OUT.png and OUT.svg, with exits of BLIPEE also against the paper's own
# speed-up; none of a sweep with --time-only, which has no quality.
draw() {
  local axes=()
  [[ " ${*:5} " != *" --time-only "* ]] || return 0
  ! grep -q '"confidence"' "$4" || axes=(--axes parameter_speedup,flop_reduction,measured_time_reduction)
  module ofa_exit.evaluation.figures.plots "$1" --quality "$2" --out "$3" "${axes[@]}"
}
