#!/usr/bin/env bash
# Fine-tunes a plain checkpoint, as the papers fine-tune from OFA:
#   run_scripts/emoji/finetune.sh caption|entailment plain|mue|no_split|no_layer_loss INIT OUT [UPDATES] [fairseq-train arguments…]
# The model has as many layers as INIT. DATA (default examples/emoji), BATCH (128), PROCESSES, DEVICE: see common.sh.
source "$(dirname "$0")/common.sh"
task=${1:?caption or entailment} variant=${2:?plain, mue, no_split or no_layer_loss}
init=${3:?checkpoint to start from} out=${4:?folder to save to} updates=${5:-300}
shift $(($# < 5 ? $# : 5))
layers=$(layers_of "$init")
# shellcheck disable=SC2086
fit "$task" "$variant" "$out" "$updates" "${LR:-3e-4}" --finetune-from-model "$init" $layers "$@"
