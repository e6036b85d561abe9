# PABEE's training and rule over the decoder's own classifier: what the rule does without heads.
LOSS=(--criterion multi_exit_loss --layer-weights rising)
RULE=patience
