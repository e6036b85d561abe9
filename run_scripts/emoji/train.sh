#!/usr/bin/env bash
# Fine-tunes plain OFA with MuE:
#   run_scripts/emoji/train.sh caption|entailment CHECKPOINT OUT [fairseq-train arguments…]
# CHECKPOINT: plain OFA, as pretrain.sh makes it or examples/checkpoints/ofa_nano_caption.pt. UPDATES (300), DATA (default
# examples/emoji), BATCH (128), LR (3e-4), PROCESSES, DEVICE: see common.sh; SAVE_UPDATES as for the published data sets (default
# 100). A killed run resumes. Results: results/README.md. Variants of MuE: finetune.sh; BLIPEE: blipee.sh; the CIDEr
# stage: scst.sh.
source "$(dirname "$0")/../help.sh"
exec "$(dirname "$0")/finetune.sh" "${1:?caption or entailment}" mue "${2:?checkpoint to start from}" "${3:?folder to save to}" \
  "${UPDATES:-300}" --save-interval-updates "${SAVE_UPDATES:-100}" --keep-interval-updates 1 "${@:4}"
