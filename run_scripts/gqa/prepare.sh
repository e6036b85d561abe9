#!/usr/bin/env bash
# GQA: all balanced splits as TSV files; a killed run goes on where it was.
#   run_scripts/gqa/prepare.sh ROOT OUT [arguments of python -m ofa_exit.prepare gqa…]
# What to download into ROOT: python -m ofa_exit.prepare gqa --help
DEVICE=cpu source "$(dirname "$0")/../common.sh"
prepare gqa "${1:?folder of the unpacked downloads}" "${2:?folder for the TSV files}" "${@:3}"
