# DeeCap (Fei et al. 2022): imitation heads trained with the backbone, entropy rule.
FROM=plain
MODEL=(--exit-head imitation --exit-layers all)
LOSS=(--criterion deecap_loss)
RULE=entropy
