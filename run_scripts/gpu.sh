#!/usr/bin/env bash
# Check and measure this package on a GPU in ten minutes, without network: `make gpu`.
#   DEVICE  cuda (default) or cpu: the same steps with ofa_nano and small images, to try the script
#   NAME    of the folder results/gpu_NAME; default: the name of the device
#   ARCH    model of the measurements; default ofa_base, on the CPU ofa_nano
#   PYTHON  a Python that has the packages; default: .venv, python3 or python, the first that has
# Writes device.txt, tests.txt, generate.csv, device_use.csv, training.csv and README.md, which sums
# them up. A step that fails or takes too long does not stop the others. The exit status is then 1.
set -uo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in
  -h | --help)
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"
    exit
    ;;
esac
cd "$ROOT" || exit 1
# What setup.py installs, as far as the steps import it; hydra comes with fairseq.
read -r -d '' MISSING << 'PY'
import importlib.util as found, sys
named = {"ve-fairseq": "fairseq", "hydra-core": "hydra", "pillow": "PIL"}
needed = ["torch", "torchvision", *named, "filelock", "ijson", "numpy", "omegaconf",
          "pycocoevalcap", "pytest", "sacrebleu", "scipy", "tabulate", "tqdm"]
missing = [one for one in needed if found.find_spec(named.get(one, one)) is None]
print(*missing)
raise SystemExit(bool(missing))
PY
given=${PYTHON:-} missing=
pythons=(.venv/bin/python python3 python)
[ -z "$given" ] || pythons=("$given")
for python in "${pythons[@]}"; do
  PYTHON=$(command -v "$python") || continue
  lacks=$("$PYTHON" -W ignore -c "$MISSING" 2> /dev/null) && break
  missing+="
  $PYTHON lacks ${lacks:-all}" PYTHON=
done
if [ -z "$PYTHON" ]; then
  echo "gpu.sh: ${given:-no Python} has ${given:+not }all packages:${missing:- there is none}
With network, run: make setup. Without, carry wheels from a machine with network: docs/gpu.md" >&2
  exit 2
fi
DEVICE=${DEVICE:-cuda}
if [ "$DEVICE" = cuda ] && ! "$PYTHON" -c 'import torch; raise SystemExit(not torch.cuda.is_available())'; then
  echo "gpu.sh: torch sees no CUDA device. Try the steps with DEVICE=cpu" >&2
  exit 2
fi
# Float32 means float32: without it, convolutions round to 10 bits and miss the tolerances.
export NVIDIA_TF32_OVERRIDE=0 PYTHONPATH=$ROOT PYTHONWARNINGS=ignore GPU_TESTS_DEVICE=$DEVICE
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TQDM_DISABLE=1 # no progress bars in the files
read -r -d '' DESCRIBE << 'PY'
import sys, torch
is_cuda = sys.argv[1] == "cuda"
print(torch.cuda.get_device_name() if is_cuda else "CPU")
print("torch", torch.__version__, "CUDA", torch.version.cuda)
for number in range(torch.cuda.device_count() if is_cuda else 0):
    device = torch.cuda.get_device_properties(number)
    print(f"{number}: {device.name}, {device.total_memory / 2**30:.0f} GiB")
PY
described=$("$PYTHON" -c "$DESCRIBE" "$DEVICE") || exit 1
NAME=${NAME:-$(head -n 1 <<< "$described" | tr 'A-Z ' 'a-z_' | tr -cd 'a-z0-9_-')}
OUT=$ROOT/results/gpu_$NAME
mkdir -p "$OUT"
{
  echo "$described"
  git rev-parse HEAD 2> /dev/null | sed 's/^/commit /'
} > "$OUT/device.txt"

if [ "$DEVICE" = cuda ]; then
  ARCH=${ARCH:-ofa_base} sizes=(--batch-size 1,8,32) more=(--dtype float16) rounds=(--rounds 9)
else
  ARCH=${ARCH:-ofa_nano} rounds=(--rounds 2 --warm-up 1)
  sizes=(--batch-size 1,2 --image-size 32 --vocabulary 60) more=(--dtype float32)
fi
model=(--arch "$ARCH" --device "$DEVICE" "${sizes[@]}" "${more[@]}")
tests=(tests/runtime/test_gpu.py)
[ "$DEVICE" = cuda ] || tests+=(tests/runtime/test_device.py) # fake CUDA tensors
failed=()

# step NAME SECONDS COMMAND…: run a command, keep what it prints in NAME.txt, and note a failure.
step() {
  local name=$1 seconds=$2 status=0
  shift 2
  echo "== $name"
  timeout "$seconds" "$@" > "$OUT/$name.txt" 2>&1 || status=$?
  tail -n 12 "$OUT/$name.txt"
  [ $status = 0 ] && return
  [ $status = 124 ] && status="$status: longer than $seconds s"
  failed+=("$name (exit status $status)")
}

# On the CPU, where these are no measurements, nothing is hurried.
slow=$([ "$DEVICE" = cuda ] && echo 1 || echo 10)
step tests $((240 * slow)) "$PYTHON" -m pytest -q -p no:cacheprovider -m "gpu or not slow" "${tests[@]}"
step generate $((150 * slow)) "$PYTHON" -m benchmarks.generate "${model[@]}" "${rounds[@]}" \
  --only reference full exits gated --no-memory --profile-rounds 0 --threads 1 --csv "$OUT/generate.csv"
step device_use $((90 * slow)) "$PYTHON" -m benchmarks.device_use "${model[@]}" --csv "$OUT/device_use.csv"
step training $((110 * slow)) "$PYTHON" -m benchmarks.training "${model[@]}" --csv "$OUT/training.csv"

{
  echo "# $(head -n 1 "$OUT/device.txt")"
  printf '\n`make gpu`, %s. Failed: %s.\n' "$ARCH" "${failed[*]:-nothing}"
  for name in device tests generate device_use training; do
    printf '\n## %s\n\n```\n' "$name"
    tail -n 40 "$OUT/$name.txt"
    echo '```'
  done
} > "$OUT/README.md"
echo "wrote $OUT"
[ ${#failed[@]} = 0 ] || {
  echo "failed: ${failed[*]}" >&2
  exit 1
}
