# RSICD (Lu et al. 2017): captions of aerial photographs, official split. The scripts here are those of run_scripts/data_set.
# Published on test, scales differ between papers: VLAD + RNN BLEU-4 0.168, METEOR 0.200, ROUGE-L 0.424, CIDEr 1.04; fine-tuned BLIP
# base 0.303, 0.258, 0.479, 0.59; BLIP large 0.372, 0.300, 0.540, 0.88. MuE and BLIPEE: not in the papers.
# train_blipee.sh trains on train.tsv, with labels. Differs from the paper, which trains on 80 % of a validation split.
#   IMAGE_SIZE   side of the images in pixels (default 128; with BPE_DIR 480, as OFA)
#   AUGMENT      random views of training images, such as flips,rotations: aerial images have no up (default: none)
#   LENGTH (20)  longest generated caption, in words
#   ARCH (ofa_nano), BATCH and MICRO (64), LR (3e-4), EPOCHS (10): a small model over dict.txt. With BPE_DIR: those of OFA and MuE
sizes
LENGTH=${LENGTH:-20}
# Images have 2.2 captions on average.
TASK=(--task mue_caption "${SIZES[@]}" --max-tgt-length 30 --group-images)
CHOOSE=(--eval-cider --eval-args '{"beam":5,"max_len_b":'"$LENGTH"',"no_repeat_ngram_size":3}' --best-checkpoint-metric cider
  --maximize-best-checkpoint-metric)
FIT=(--label-smoothing 0.1)
SEARCH=(--beam 5 --max-len-b "$LENGTH" --no-repeat-ngram-size 3)
SCORING=coco_caption QUALITY=CIDEr SETTINGS=$ROOT/run_scripts/grids/caption.json BLIPEE=supervised
SCORER=(--coco-tokenizer "${TOKENIZER:-auto}")
ROWS=${ROWS:-$DATA}
