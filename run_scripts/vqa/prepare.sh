#!/usr/bin/env bash
# VQA v2: all splits and the candidate answers as TSV files; a killed run resumes.
#   run_scripts/vqa/prepare.sh ROOT OUT [arguments of ofa-exit prepare vqa…]
# What to download into ROOT: ofa-exit prepare vqa --help
DEVICE=cpu source "$(dirname "$0")/../common.sh"
ofa_exit prepare vqa "${1:?folder of the unpacked downloads}" "${2:?folder for the TSV files}" "${@:3}"
