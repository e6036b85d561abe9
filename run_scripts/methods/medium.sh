# OFA medium without exits, as tiny: MEDIUM names its pretrained checkpoint.
START=${MEDIUM:?method medium needs MEDIUM=…, the pretrained checkpoint of the medium model}
read -ra MODEL <<< "${MEDIUM_MODEL:---arch ofa_medium}"
LOSS=(--criterion mue_loss --layer-weights last)
RULE=full
