# VisDial 1.0: options that its scripts share, OFA's own where its release has them.
TASK=(--task mue_visdial --patch-image-size 480 --max-src-length 200 --max-tgt-length 30)
FIT=(--label-smoothing 0.1 --eval-mrr --eval-ndcg --best-checkpoint-metric mrr)
SEARCH=()
SCORING=visdial QUALITY=MRR HIDDEN='test' GRID=${GRID:-$ROOT/run_scripts/grids/answer.json}
