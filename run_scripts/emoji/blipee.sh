#!/usr/bin/env bash
# Trains BLIPEE's exits on a fine-tuned plain checkpoint, which stays frozen:
#   run_scripts/emoji/blipee.sh caption|entailment INIT OUT [UPDATES] [fairseq-train arguments…]
# EXITS (default 1,2,4): decoder layers with an exit. MODE supervised (default) or distill.
# The paper's settings: Adam with betas 0.9 and 0.999, warm-up, batch size 16, a learning rate that halves every 3 epochs.
# Every update trains feature classifiers and exits. DATA, BATCH (16), LR, PROCESSES, DEVICE: see common.sh.
#   run_scripts/emoji/generate.sh caption OUT/checkpoint_last.pt valid OUT/exits --exit-policy confidence --exit-alpha 0.8
source "$(dirname "$0")/common.sh"
task=${1:?caption or entailment} init=${2:?checkpoint to start from} out=${3:?folder to save to} updates=${4:-600}
shift $(($# < 4 ? $# : 4))
batch=${BATCH:-16}
rows=$(wc -l < "$DATA/${task}_train.tsv")
three_epochs=$((3 * ((rows + batch - 1) / batch)))
# shellcheck disable=SC2046
train "$DATA/${task}_train.tsv,$DATA/${task}_valid.tsv" $(task_options "$task") --arch ofa_nano \
  --finetune-from-model "$init" --exit-layers "${EXITS:-1,2,4}" \
  --criterion blipee_adversarial --blipee-mode "${MODE:-supervised}" \
  --optimizer adam --adam-betas "(0.9, 0.999)" --clip-norm 1.0 \
  --lr "${LR:-3e-4}" --lr-scheduler step_from_start --lr-decay 0.5 --lr-deacy-period "$three_epochs" \
  --warmup-updates $((updates / 10)) --warmup-init-lr 1e-7 --max-update "$updates" \
  --batch-size $((batch / PROCESSES)) --batch-size-valid 32 \
  --save-dir "$out" --no-epoch-checkpoints "$@"
