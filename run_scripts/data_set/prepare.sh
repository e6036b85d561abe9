#!/usr/bin/env bash
# Makes TSV files of all splits, and dict.txt of the training words unless BPE_DIR is set; a killed run resumes.
#   run_scripts/NAME/prepare.sh ROOT OUT [arguments of ofa-exit prepare NAME…]
# What to download into ROOT: ofa-exit prepare NAME --help
DEVICE=cpu source "$(dirname "$0")/../common.sh"
ofa_exit prepare "$(basename "$(cd "$(dirname "$0")" && pwd)")" "${1:?folder of the unpacked downloads}" \
  "${2:?folder for the TSV files}" ${BPE_DIR:+--dictionary none} "${@:3}"
