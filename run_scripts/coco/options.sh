# COCO captions, Karpathy's split: options that its scripts share; OFA's own if its release has them.
TASK=(--task mue_caption --patch-image-size 480 --max-tgt-length 20)
CHOOSE=(--eval-cider --eval-args '{"beam":5,"max_len_b":16,"no_repeat_ngram_size":3}' --best-checkpoint-metric cider
  --maximize-best-checkpoint-metric)
FIT=(--label-smoothing 0.1 --drop-worst-ratio 0.2 --drop-worst-after 6000)
SEARCH=(--beam 5 --max-len-b 16 --no-repeat-ngram-size 3)
SCORING=coco_caption QUALITY=CIDEr SETTINGS=$ROOT/run_scripts/grids/caption.json BLIPEE=supervised PAPER=${PAPER-mue_coco,blipee_coco}
OFA_BATCH=128 OFA_LR=1e-5
