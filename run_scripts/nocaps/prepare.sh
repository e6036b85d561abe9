#!/usr/bin/env bash
# NoCaps validation captions: all images and each domain as TSV files; a killed run resumes.
#   run_scripts/nocaps/prepare.sh ROOT OUT [arguments of ofa-exit prepare nocaps…]
# What to download into ROOT: ofa-exit prepare nocaps --help
DEVICE=cpu source "$(dirname "$0")/../common.sh"
ofa_exit prepare nocaps "${1:?folder of the unpacked downloads}" "${2:?folder for the TSV files}" "${@:3}"
