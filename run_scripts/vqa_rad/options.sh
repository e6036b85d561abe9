# VQA-RAD (Lau et al. 2018): questions about radiology images, official test split. The scripts here are those of run_scripts/data_set.
# Generation chooses from the training answers (answers.txt). An answer is correct if it equals the published one in lower case.
# Splits: test, test_closed and test_open, as published work reports them. MuE and BLIPEE: not in the papers.
# train_blipee.sh trains on train.tsv, with labels. Differs from the paper, which trains on 80 % of a validation split.
#   IMAGE_SIZE   side of the images in pixels (default 128; with BPE_DIR 480, as OFA)
#   AUGMENT      random views of training images, see --augment. Answers such as "left" are wrong in a mirrored image (default: none)
#   ARCH (ofa_nano), BATCH and MICRO (64), LR (3e-4), EPOCHS (10): a small model over dict.txt. With BPE_DIR: those of OFA and MuE
sizes
TASK=(--task mue_vqa --prompt-type none "${SIZES[@]}" --max-src-length 80 --max-tgt-length 30 --answers "$DATA/answers.txt"
  --vqa-metric gqa_accuracy)
CHOOSE=(--eval-acc --best-checkpoint-metric vqa_acc --maximize-best-checkpoint-metric)
FIT=(--label-smoothing 0.1)
SEARCH=()
SCORING=gqa_accuracy QUALITY=accuracy SETTINGS=$ROOT/run_scripts/grids/answer.json BLIPEE=supervised
TEST=${TEST:-test test_closed test_open} KEEP_QUALITY=${KEEP_QUALITY:-0.99}
ROWS=${ROWS:-$DATA}
