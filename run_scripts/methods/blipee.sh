# BLIPEE (Bajpai and Hanawal 2025): transformer heads on the frozen plain model, adversarial training with labels, confidence rule.
FROM=plain
MODEL=(--exit-layers "${EXITS:-all}")
LOSS=(--criterion blipee_adversarial --blipee-mode supervised)
RULE=confidence
FIT=()
