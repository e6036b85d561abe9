"""Sizes of the named architectures: what differs from OFAConfig's defaults (those of ofa_base)."""

from __future__ import annotations

from typing import Any

# Blocks of the stem's three stages.
RESNET_STAGES: dict[str, tuple[int, int, int]] = {
    "resnet_nano": (2, 2, 2),
    "resnet50": (3, 4, 6),
    "resnet101": (3, 4, 23),
    "resnet152": (3, 8, 36),
}


def _size(
    dim: int, encoder_layers: int, decoder_layers: int, heads: int, resnet: str
) -> dict[str, Any]:
    return {
        "encoder_embed_dim": dim,
        "encoder_ffn_embed_dim": 4 * dim,
        "encoder_layers": encoder_layers,
        "decoder_layers": decoder_layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "resnet_type": resnet,
    }


ARCHS: dict[str, dict[str, Any]] = {
    # For small machines: as deep as ofa_base, with a light stem and small buffers.
    "ofa_nano": {
        **_size(128, 6, 6, 4, "resnet_nano"),
        "resnet_width": 24,
        "max_source_positions": 128,
        "max_target_positions": 128,
        "token_bucket_size": 32,
        "image_bucket_size": 8,
        "orig_patch_image_size": 64,
    },
    "ofa_tiny": _size(256, 4, 4, 4, "resnet50"),
    "ofa_medium": _size(512, 4, 4, 8, "resnet101"),
    "ofa_base": _size(768, 6, 6, 12, "resnet101"),
    "ofa_large": _size(1024, 12, 12, 16, "resnet152"),
    "ofa_huge": _size(1280, 24, 12, 16, "resnet152"),
}
