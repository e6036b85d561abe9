#!/usr/bin/env bash
# Generates and scores a split, one of valid, test_artist, test_combinations; in full, or with exits:
#   run_scripts/emoji/evaluate.sh caption|entailment CHECKPOINT SPLIT OUT [fairseq-generate arguments, --exit-…]
#   --exit-policy similarity …   (MuE; the paper's thresholds do not fit this small model: sweep.sh)
#   --exit-policy confidence --exit-alpha 0.8   (what blipee.sh made)
# DATA (default examples/emoji), DEVICE: see common.sh. What is complete in OUT is kept. Results: results/README.md.
exec "$(dirname "$0")/generate.sh" "$@"
