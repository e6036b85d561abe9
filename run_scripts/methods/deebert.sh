# DeeBERT (Xin et al. 2020): linear heads on the frozen plain model, entropy rule.
FROM=plain
MODEL=(--exit-head linear --exit-layers all)
LOSS=(--criterion exit_heads_loss)
RULE=entropy
