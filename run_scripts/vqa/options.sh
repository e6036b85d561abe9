# VQA v2: options that its scripts share; OFA's own if its release has them. DATA: the data's folder.
TASK=(--task mue_vqa --prompt-type prev_output --patch-image-size 480 --max-src-length 80 --max-tgt-length 30
  --answers "$DATA/answers.txt")
CHOOSE=(--eval-acc --best-checkpoint-metric vqa_acc --maximize-best-checkpoint-metric)
FIT=(--label-smoothing 0.1)
SEARCH=()
SCORING=vqa_accuracy QUALITY=accuracy HIDDEN='test-dev test' SETTINGS=$ROOT/run_scripts/grids/answer.json BLIPEE=supervised PAPER=${PAPER-blipee_vqa}
