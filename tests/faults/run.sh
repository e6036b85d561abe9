#!/usr/bin/env bash
# Kill, fill and lock the steps of a small experiment, resume them, and print a table.
#   tests/faults/run.sh [--kills N] [--seed S] [--steps NAME,…]
# Steps: training, preparation, indexing, sweep, shards, merge, calibration (default: all). Each is
#   - killed by SIGKILL at N points (default 30, shared by the steps): at a moment, before an
#     operation on a file, or within a write. It is run again and must equal the uninterrupted run:
#     weights and optimizer state to the bit, files byte for byte, no other file in the folder.
#   - run on a disk that is too small, and in a read-only folder: one line, nothing half-written
#     that looks whole. With room again, it must equal the uninterrupted run.
#   - run twice at once in one folder: one run waits or is rejected, and the files are whole.
# Disks are tmpfs in a mount namespace of this script. Without the right to make one, a limit on the
# size of files stands in for the full disk, and access rights for the read-only folder.
# Exit status 1 if a line of the table failed. About ten minutes on two cores.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
case ${1:-} in
  -h | --help)
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"
    exit
    ;;
esac
BIN=${BIN:-$ROOT/.venv/bin}
[ -x "$BIN/python" ] || BIN=$(dirname "$(command -v python)")
# One thread: sums of several differ in the last bit.
export OMP_NUM_THREADS=1 PYTHONPATH="$ROOT:$ROOT/tests" PYTHONWARNINGS=ignore
namespace=()
! unshare -rm true 2> /dev/null || namespace=(unshare -rm)
exec "${namespace[@]}" "$BIN/python" -m faults.campaign "$@"
