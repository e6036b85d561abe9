# BLIPEE with the last layer's words in place of labels.
FROM=plain
MODEL=(--exit-layers "${EXITS:-all}")
LOSS=(--criterion blipee_adversarial --blipee-mode distill)
RULE=confidence
FIT=()
