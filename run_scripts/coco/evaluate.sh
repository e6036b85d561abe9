#!/usr/bin/env bash
# COCO captions, Karpathy's split: generates and scores a split (test, valid), at full depth or with exits:
#   run_scripts/coco/evaluate.sh DATA CHECKPOINT SPLIT OUT [fairseq-generate arguments, --exit-…]
#   --exit-policy similarity   (MuE, appendix: image 0.9, text 0.95, decoder theta 0.99, beta 0.95, tau 1)
#   --exit-policy confidence --exit-alpha 0.8   (checkpoints of train_blipee.sh; BLIPEE, Table 6)
# MuE, Table 1: OFA base CIDEr 146.7; with exits 137.0, BLEU-4 41.6, METEOR 30.6, SPICE 24.4 at -40.2 % expected time, after a
# second stage of training on CIDEr: train_cider.sh.
# BLIPEE, Table 4, with labels, BLIP-2 ViT-g OPT-2.7B: CIDEr 142.5, BLEU-4 41.9, METEOR 30.8, SPICE 25.2 at 1.75 x (its speed-up
# counts parameters).
# Not yet run on the real data.
source "$(dirname "$0")/../benchmark.sh"
evaluate "$@"
