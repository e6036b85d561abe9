#!/usr/bin/env bash
# NoCaps validation captions: all images and each domain as TSV files; a killed run goes on where it was.
#   run_scripts/nocaps/prepare.sh ROOT OUT [arguments of python -m ofa_exit.prepare nocaps…]
# What to download into ROOT: python -m ofa_exit.prepare nocaps --help
DEVICE=cpu source "$(dirname "$0")/../common.sh"
prepare nocaps "${1:?folder of the unpacked downloads}" "${2:?folder for the TSV files}" "${@:3}"
