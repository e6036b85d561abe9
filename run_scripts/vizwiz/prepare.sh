#!/usr/bin/env bash
# VizWiz VQA: all splits as TSV files; a killed run goes on where it was.
#   run_scripts/vizwiz/prepare.sh ROOT OUT [arguments of python -m ofa_exit.prepare vizwiz…]
# What to download into ROOT: python -m ofa_exit.prepare vizwiz --help
DEVICE=cpu source "$(dirname "$0")/../common.sh"
prepare vizwiz "${1:?folder of the unpacked downloads}" "${2:?folder for the TSV files}" "${@:3}"
