#!/usr/bin/env bash
# OK-VQA: all splits as TSV files; a killed run resumes.
#   run_scripts/okvqa/prepare.sh ROOT OUT [arguments of ofa-exit prepare okvqa…]
# What to download into ROOT: ofa-exit prepare okvqa --help
DEVICE=cpu source "$(dirname "$0")/../common.sh"
ofa_exit prepare okvqa "${1:?folder of the unpacked downloads}" "${2:?folder for the TSV files}" "${@:3}"
