#!/usr/bin/env bash
# Generates and scores a split, at full depth or with exits:
#   run_scripts/NAME/evaluate.sh DATA CHECKPOINT SPLIT OUT [fairseq-generate arguments, --exit-…]
#   --exit-policy similarity   (MuE; thresholds: docs/exits.md)
#   --exit-policy confidence --exit-alpha 0.8   (checkpoints of train_blipee.sh; BLIPEE, Table 6)
source "$(dirname "$0")/../benchmark.sh"
evaluate "$@"
