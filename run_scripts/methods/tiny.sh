# A smaller OFA without exits (MuE Table 1, OFA-tiny): TINY names its pretrained checkpoint. The table counts its layers against plain's.
START=${TINY:?method tiny needs TINY=…, the pretrained checkpoint of the smaller model}
read -ra MODEL <<< "${TINY_MODEL:---arch ofa_tiny}"
LOSS=(--criterion mue_loss --layer-weights last)
RULE=full
