#!/usr/bin/env bash
# Plain OFA (ofa_nano) from scratch, or from another checkpoint, with its numbers of layers, by INIT=…
#   run_scripts/emoji/pretrain.sh caption|entailment OUT [UPDATES] [fairseq-train arguments…]
# A static baseline (MuE, Table 1): --encoder-layers 4 --decoder-layers 4
# DATA (default examples/emoji), BATCH (128), PROCESSES, DEVICE: see common.sh.
source "$(dirname "$0")/common.sh"
task=${1:?caption or entailment} out=${2:?folder to save to} updates=${3:-2000}
shift $(($# < 3 ? $# : 3))
layers=
[ -z "${INIT:-}" ] || layers=$(layers_of "$INIT")
# shellcheck disable=SC2086
fit "$task" plain "$out" "$updates" "${LR:-1e-3}" ${INIT:+--finetune-from-model "$INIT"} $layers "$@"
