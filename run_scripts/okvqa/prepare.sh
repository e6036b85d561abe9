#!/usr/bin/env bash
# OK-VQA: all splits as TSV files; a killed run goes on where it was.
#   run_scripts/okvqa/prepare.sh ROOT OUT [arguments of python -m ofa_exit.prepare okvqa…]
# What to download into ROOT: python -m ofa_exit.prepare okvqa --help
DEVICE=cpu source "$(dirname "$0")/../common.sh"
prepare okvqa "${1:?folder of the unpacked downloads}" "${2:?folder for the TSV files}" "${@:3}"
