# OFA without exits, fine-tuned by its own loss. Its cosines are swept, too: exits without any of MuE's training.
LOSS=(--criterion mue_loss --layer-weights last)
RULE=joint
