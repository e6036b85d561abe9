#!/usr/bin/env bash
# SNLI-VE visual entailment: all splits as TSV files; a killed run resumes.
#   run_scripts/snli_ve/prepare.sh ROOT OUT [arguments of ofa-exit prepare snli_ve…]
# What to download into ROOT: ofa-exit prepare snli_ve --help
DEVICE=cpu source "$(dirname "$0")/../common.sh"
ofa_exit prepare snli_ve "${1:?folder of the unpacked downloads}" "${2:?folder for the TSV files}" "${@:3}"
