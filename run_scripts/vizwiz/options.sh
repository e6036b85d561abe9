# VizWiz VQA: options that its scripts share; OFA's own if its release has them.
TASK=(--task mue_vqa --prompt-type none --patch-image-size 480 --max-src-length 80 --max-tgt-length 30 --vqa-metric
  vizwiz_accuracy)
CHOOSE=(--eval-acc --best-checkpoint-metric vqa_acc --maximize-best-checkpoint-metric)
FIT=(--label-smoothing 0.1)
SEARCH=(--beam 5 --unnormalized --max-len-b 16)
SCORING=vizwiz_accuracy QUALITY=accuracy HIDDEN='test' SETTINGS=$ROOT/run_scripts/grids/answer.json BLIPEE=distill PAPER=${PAPER-blipee_vizwiz}
