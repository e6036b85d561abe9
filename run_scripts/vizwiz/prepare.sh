#!/usr/bin/env bash
# VizWiz VQA: all splits as TSV files; a killed run resumes.
#   run_scripts/vizwiz/prepare.sh ROOT OUT [arguments of ofa-exit prepare vizwiz…]
# What to download into ROOT: ofa-exit prepare vizwiz --help
DEVICE=cpu source "$(dirname "$0")/../common.sh"
ofa_exit prepare vizwiz "${1:?folder of the unpacked downloads}" "${2:?folder for the TSV files}" "${@:3}"
