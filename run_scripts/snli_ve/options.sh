# SNLI-VE visual entailment: options that its scripts share; OFA's own if its release has them.
TASK=(--task mue_snli_ve --prompt-type prev_output --add-caption --patch-image-size 480 --max-src-length 80)
CHOOSE=(--eval-acc --best-checkpoint-metric acc --maximize-best-checkpoint-metric)
FIT=(--label-smoothing 0.0)
SEARCH=()
SCORING=accuracy QUALITY=accuracy SETTINGS=$ROOT/run_scripts/grids/answer.json PAPER=${PAPER-mue_snli_ve}
OFA_BATCH=256 OFA_LR=5e-5
