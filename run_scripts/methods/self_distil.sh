# MuE whose layers also learn from the last one's words.
MODEL=(--split-modalities)
LOSS=(--criterion mue_loss --layer-weights uniform --self-distil "${SELF_DISTIL:-0.5}")
RULE=split
