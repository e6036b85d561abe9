# OFA medium without exits, as tiny: MEDIUM names its pretrained checkpoint.
NEEDS=MEDIUM START=${MEDIUM:-}
read -ra MODEL <<< "${MEDIUM_MODEL:---arch ofa_medium}"
LOSS=(--criterion mue_loss --layer-weights last)
RULE=full
