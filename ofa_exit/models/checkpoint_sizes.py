"""The arguments of a model, read off the shapes of its weights."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from ofa_exit.models.archs import RESNET_STAGES


def sizes_of(weights: dict[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of ``OFAConfig`` that shapes tell, for official names.

    Raises:
        LookupError: an entry of OFA is missing, or the stem has an unknown number of blocks.
    """
    blocks = [_count(weights, f"encoder.embed_images.layer{stage}") for stage in (1, 2, 3)]
    resnets = {stages: name for name, stages in RESNET_STAGES.items()}
    channels = weights["encoder.layers.0.fc1.weight"].size(1)
    return {
        "encoder_embed_dim": channels,
        "decoder_embed_dim": channels,
        "encoder_ffn_embed_dim": weights["encoder.layers.0.fc1.weight"].size(0),
        "decoder_ffn_embed_dim": weights["decoder.layers.0.fc1.weight"].size(0),
        "encoder_layers": _count(weights, "encoder.layers"),
        "decoder_layers": _count(weights, "decoder.layers"),
        "encoder_attention_heads": weights["encoder.layers.0.self_attn.c_attn"].size(0),
        "decoder_attention_heads": weights["decoder.layers.0.self_attn.c_attn"].size(0),
        # fairseq's position embeddings have two rows more, the official model's tables have
        # 2·bucket - 1 rows, and image positions a row for "no cell" before bucket² cells.
        "max_source_positions": weights["encoder.embed_positions.weight"].size(0) - 2,
        "max_target_positions": weights["decoder.embed_positions.weight"].size(0) - 2,
        "token_bucket_size": (weights["encoder.token_rel_pos_table_list.0.weight"].size(0) + 1)
        // 2,
        "image_bucket_size": round(
            (weights["encoder.embed_image_positions.weight"].size(0) - 1) ** 0.5
        ),
        "resnet_type": resnets[blocks[0], blocks[1], blocks[2]],
        "resnet_width": weights["encoder.embed_images.conv1.weight"].size(0),
    }


def _count(weights: dict[str, Tensor], prefix: str) -> int:
    """Return how many layers a list of modules has."""
    number = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return 1 + max((int(m[1]) for name in weights if (m := number.match(name))), default=-1)
