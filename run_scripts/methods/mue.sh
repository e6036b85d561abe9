# MuE (Tang et al. 2023): encoder split by modality, loss on every decoder layer, cosine rule.
MODEL=(--split-modalities)
LOSS=(--criterion mue_loss --layer-weights uniform)
RULE=split
