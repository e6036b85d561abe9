#!/usr/bin/env bash
# SNLI-VE visual entailment: generates and scores a split (test, valid), at full depth or with exits:
#   run_scripts/snli_ve/evaluate.sh DATA CHECKPOINT SPLIT OUT [fairseq-generate arguments, --exit-…]
#   --exit-policy similarity   (MuE, appendix: image 0.9, text 0.95, decoder 0.95)
# MuE, Table 1: OFA base 89.3 (dev) and 89.2 (test); with exits 88.7 and 88.5 at -50 % expected time.
# BLIPEE: SNLI-VE is not in the paper.
# Not yet run on the real data.
source "$(dirname "$0")/../benchmark.sh"
evaluate "$@"
