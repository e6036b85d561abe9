#!/usr/bin/env bash
# Generates and scores a split (valid, test_artist or test_combinations), at full depth or with exits:
#   run_scripts/emoji/evaluate.sh caption|entailment CHECKPOINT SPLIT OUT [fairseq-generate arguments, --exit-…]
#   --exit-policy similarity …   (MuE; the paper's thresholds do not fit this small model: see sweep.sh)
#   --exit-policy confidence --exit-alpha 0.8   (checkpoints of blipee.sh)
# DATA (default examples/emoji), DEVICE: see common.sh. A finished generation in OUT is kept. Results: results/README.md.
exec "$(dirname "$0")/generate.sh" "$@"
