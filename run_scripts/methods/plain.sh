# OFA without exits, fine-tuned by its own loss. Its cosines are swept, too, as MuE Table 4's first line.
LOSS=(--criterion mue_loss --layer-weights last)
RULE=joint
