#!/usr/bin/env bash
# VQA v2: all splits and the candidate answers as TSV files; a killed run goes on where it was.
#   run_scripts/vqa/prepare.sh ROOT OUT [arguments of python -m ofa_exit.prepare vqa…]
# What to download into ROOT: python -m ofa_exit.prepare vqa --help
DEVICE=cpu source "$(dirname "$0")/../common.sh"
prepare vqa "${1:?folder of the unpacked downloads}" "${2:?folder for the TSV files}" "${@:3}"
