#!/usr/bin/env bash
# GQA: all balanced splits as TSV files; a killed run resumes.
#   run_scripts/gqa/prepare.sh ROOT OUT [arguments of ofa-exit prepare gqa…]
# What to download into ROOT: ofa-exit prepare gqa --help
DEVICE=cpu source "$(dirname "$0")/../common.sh"
ofa_exit prepare gqa "${1:?folder of the unpacked downloads}" "${2:?folder for the TSV files}" "${@:3}"
