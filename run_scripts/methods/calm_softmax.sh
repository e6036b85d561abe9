# CALM by the largest probability.
TRAINED=pabee_shared
RULE=softmax
