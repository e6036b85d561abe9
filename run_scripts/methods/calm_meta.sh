# CALM by a meta classifier, trained on the frozen model.
FROM=pabee_shared
MODEL=(--exit-head meta --exit-layers all)
LOSS=(--criterion calm_meta_loss)
RULE=meta
FIT=()
