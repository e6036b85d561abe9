#!/usr/bin/env bash
# COCO captions, Karpathy's split: the second stage, which trains what train.sh made on CIDEr (criterion mue_scst).
#   run_scripts/coco/train_cider.sh DATA CHECKPOINT OUT [fairseq-train arguments…]
# MuE trains in these two stages (appendix) and tells no settings of the second; these are OFA base's own: batch 64, lr 1e-5,
# 3 epochs, weight decay 0.01, no dropout, rewards of five hypotheses of beam search, each compared with the others' mean. The
# loss is on every decoder layer, as in MuE; VARIANT=plain is OFA's own stage. Differs from OFA: batch norm of the stem is
# frozen, so that the loss sees the probabilities of the search; embeddings are not.
# MuE, Table 1, after both stages: OFA base CIDEr 146.7; with exits 137.0, BLEU-4 41.6, METEOR 30.6, SPICE 24.4 at -40.2 %.
# Not yet run on the real data.
#   FREQUENCIES   document frequencies of the training references (default: OUT/document_frequencies.npz). They are made
#                 where they are missing; before several processes start (torchrun, Slurm), make them once by
#                 ofa-exit document-frequencies DATA/train_stage2.tsv FREQUENCIES
# VARIANT, ARCH, BPE_DIR, BATCH, MICRO, LR, EPOCHS, VALID, SAVE_UPDATES: see benchmark.sh.
source "$(dirname "$0")/../benchmark.sh"
cider_stage "$@"
