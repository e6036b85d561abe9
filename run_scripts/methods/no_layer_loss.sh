# MuE without the layer-wise loss (MuE Table 4).
MODEL=(--split-modalities)
LOSS=(--criterion mue_loss --layer-weights last)
RULE=split
