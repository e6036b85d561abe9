# Entailment over the emoji data (examples/emoji): options that the scripts of all data sets read.
TASK=(--task mue_snli_ve --patch-image-size 64 --code-dict-size 0 --num-bins 0 --num-workers 0)
CHOOSE=(--disable-validation)
FIT=(--label-smoothing 0.1)
SEARCH=(--num-workers 0)
SCORING=accuracy QUALITY=accuracy PREFIX=entailment_ TEST=${TEST:-test_artist}
KEEP_QUALITY=${KEEP_QUALITY:-0.99} TINY_MODEL=${TINY_MODEL:---encoder-layers 4 --decoder-layers 4}
ARCH=${ARCH:-ofa_nano} BATCH=${BATCH:-128} MICRO=${MICRO:-128} LR=${LR:-3e-4} EPOCHS=${EPOCHS:-1}
