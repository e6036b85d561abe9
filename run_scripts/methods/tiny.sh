# A smaller OFA without exits (MuE Table 1, OFA-tiny): TINY names its pretrained checkpoint. The table counts its layers against plain's.
NEEDS=TINY START=${TINY:-}
read -ra MODEL <<< "${TINY_MODEL:---arch ofa_tiny}"
LOSS=(--criterion mue_loss --layer-weights last)
RULE=full
