# VisDial 1.0: options that its scripts share; OFA's own if its release has them.
TASK=(--task mue_visdial --patch-image-size 480 --max-src-length 200 --max-tgt-length 30)
CHOOSE=(--eval-mrr --eval-ndcg --best-checkpoint-metric mrr --maximize-best-checkpoint-metric)
FIT=(--label-smoothing 0.1)
SEARCH=()
SCORING=visdial QUALITY=MRR HIDDEN='test' SETTINGS=$ROOT/run_scripts/grids/answer.json BLIPEE=distill PAPER=${PAPER-blipee_visdial}
