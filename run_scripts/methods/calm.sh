# CALM (Schuster et al. 2022): the shared head, weights 1 to N; softmax difference.
TRAINED=pabee_shared
RULE=softmax_diff
