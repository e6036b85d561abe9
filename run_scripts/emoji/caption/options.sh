# Captions of the emoji data (examples/emoji): options that the scripts of all data sets read.
TASK=(--task mue_caption --patch-image-size 64 --code-dict-size 0 --num-bins 0 --num-workers 0)
CHOOSE=(--disable-validation)
FIT=(--label-smoothing 0.1)
SEARCH=(--beam 5 --max-len-b 16 --num-workers 0)
SCORING=coco_caption QUALITY=CIDEr PREFIX=caption_ TEST=${TEST:-test_artist}
SCORER=(--coco-tokenizer "${TOKENIZER:-plain}")
TINY_MODEL=${TINY_MODEL:---encoder-layers 4 --decoder-layers 4}
ARCH=${ARCH:-ofa_nano} BATCH=${BATCH:-128} MICRO=${MICRO:-128} LR=${LR:-3e-4} EPOCHS=${EPOCHS:-2}
