#!/usr/bin/env bash
# VisDial 1.0: all splits as TSV files; a killed run resumes.
#   run_scripts/visdial/prepare.sh ROOT OUT [arguments of ofa-exit prepare visdial…]
# What to download into ROOT: ofa-exit prepare visdial --help
DEVICE=cpu source "$(dirname "$0")/../common.sh"
ofa_exit prepare visdial "${1:?folder of the unpacked downloads}" "${2:?folder for the TSV files}" "${@:3}"
