#!/usr/bin/env bash
# COCO captions, Karpathy's split: all splits as TSV files; a killed run resumes.
#   run_scripts/coco/prepare.sh ROOT OUT [arguments of ofa-exit prepare coco…]
# What to download into ROOT: ofa-exit prepare coco --help
DEVICE=cpu source "$(dirname "$0")/../common.sh"
ofa_exit prepare coco "${1:?folder of the unpacked downloads}" "${2:?folder for the TSV files}" "${@:3}"
