# DEED (Tang et al. 2023, a reconstruction): adapters before the shared classifier, equal weights, confidence, exact K/V.
MODEL=(--exit-head adapter --exit-layers all)
LOSS=(--criterion multi_exit_loss --layer-weights uniform)
RULE=confidence_recompute
