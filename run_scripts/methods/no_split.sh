# MuE without the split (MuE Table 4).
LOSS=(--criterion mue_loss --layer-weights uniform)
RULE=joint
