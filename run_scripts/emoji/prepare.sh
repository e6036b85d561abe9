#!/usr/bin/env bash
# The full emoji build, several times the compact one in examples/emoji, which is ready to use. Fetches the published artwork by
# npm, renders it, and writes TSV files, in about five minutes. An interrupted build resumes.
#   run_scripts/emoji/prepare.sh OUT [arguments of python -m examples.emoji.builder build…]
# Needs npm and the renderer (pip install 'ofa-exit[emoji]'). The other scripts use it by DATA=OUT.
DEVICE=cpu source "$(dirname "$0")/common.sh"
module examples.emoji.builder build --out "${1:?folder to write to, as data/emoji}" "${@:2}"
