# PABEE (Zhou et al. 2020): linear heads trained with the backbone, weights 1 to N, patience rule.
MODEL=(--exit-head linear --exit-layers all)
LOSS=(--criterion multi_exit_loss --layer-weights rising)
RULE=patience
