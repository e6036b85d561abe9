#!/usr/bin/env bash
# COCO captions, Karpathy's split: trains BLIPEE's exits on plain OFA. DATA: the folder that prepare.sh wrote.
#   run_scripts/coco/train_blipee.sh DATA CHECKPOINT OUT [fairseq-train arguments…] [-- fairseq-generate arguments of MODE=capfilt…]
# BLIPEE, Table 4, with labels, BLIP-2 ViT-g OPT-2.7B: CIDEr 142.5, BLEU-4 41.9, METEOR 30.8, SPICE 25.2 at 1.75 x (its speed-up
# counts parameters).
# Not yet run on the real data.
# With labels, as in the paper's table: plain OFA on the captions of 80 % of the validation images, then exits on the frozen model.
# Without labels (Section 3.4), on CHECKPOINT itself, which stays frozen:
#   MODE=distill   learn from the final layer; rows without a caption get the model's own (ROWS names a folder of such rows)
#   MODE=capfilt   train on the best of the captions that CHECKPOINT samples, in OUT/capfilt. The labels are not read
#     RANKER       CLIP that chooses them, a folder or a name on the hub (default: openai/clip-vit-large-patch14, the paper's;
#                  pip install 'ofa-exit[clip]'), or a Python file (ofa-exit capfilt filter --help)
#     SAMPLES (10), KEEP (2), TOP_P (0.9)   captions to sample and to keep per image, and nucleus of the sampling
# The paper's decoder prompt: --caption-prompt "a photo of" [-- --caption-prompt "a photo of"], and the same for evaluate.sh.
# Settings, and MODE, ROWS, EXITS, BACKBONE_EPOCHS, EPOCHS, …: see train_blipee in benchmark.sh. Then, with exits at the paper's α:
#   run_scripts/coco/evaluate.sh DATA OUT/exits/checkpoint_last.pt SPLIT RESULTS --exit-policy confidence --exit-alpha 0.8
source "$(dirname "$0")/../benchmark.sh"
train_blipee "$@"
