# LeeBLIP, of BLIPEE's tables: linear heads on the frozen plain model, labels and the last layer's words, confidence rule.
FROM=plain
MODEL=(--exit-head linear --exit-layers all)
LOSS=(--criterion exit_heads_loss --distil final)
RULE=confidence
