#!/usr/bin/env bash
# The CIDEr stage on captions (criterion mue_scst), from a checkpoint that cross-entropy trained:
#   run_scripts/emoji/scst.sh plain|mue|no_split|no_layer_loss INIT OUT [UPDATES] [fairseq-train arguments…]
# DATA (default examples/emoji), BATCH (48 images), LR (5e-5), BASELINE (mean or greedy); PROCESSES, DEVICE: see common.sh. The
# training rows with all of their references, and the document frequencies, are made once, in OUT. Without DATA's
# references_train.tsv the references of an image are the captions of its own rows.
# A killed run resumes.
source "$(dirname "$0")/common.sh"
variant=${1:?plain, mue, no_split or no_layer_loss} init=${2:?checkpoint to start from}
out=${3:?folder to save to} updates=${4:-100}
shift $(($# < 4 ? $# : 4))
model_flags=$(model_options "$variant")
layers=$(layers_of "$init")
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$out"
rows=$out/caption_stage2_train.tsv frequencies=$out/document_frequencies.npz
further=()
[ ! -e "$DATA/references_train.tsv" ] || further=(--references "$DATA/references_train.tsv")
[ -e "$rows" ] || ofa_exit references "$DATA/caption_train.tsv" "$rows" "${further[@]}"
[ -e "$frequencies" ] || ofa_exit document-frequencies "$rows" "$frequencies"
# No dropout and a frozen stem: the loss needs the probabilities that the captions were sampled with.
# shellcheck disable=SC2046,SC2086
train "$rows,$DATA/caption_valid.tsv" --bpe-dir "$DATA" $(task_options caption) $model_flags \
  $(valid_options caption) --arch ofa_nano --finetune-from-model "$init" $layers \
  --criterion mue_scst --cider-frequencies "$frequencies" --scst-args '{"beam": 5, "max_len_b": 16}' \
  --scst-baseline "${BASELINE:-mean}" --dropout 0 --freeze-resnet --optimizer adam --adam-betas "(0.9, 0.999)" --clip-norm 1.0 \
  --lr "${LR:-5e-5}" --lr-scheduler fixed --max-update "$updates" \
  --batch-size $((${BATCH:-48} / $(world))) --batch-size-valid 32 \
  --save-dir "$out" --no-epoch-checkpoints "$@"
