"""Ranges of a model's arguments, of a command line or of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ofa_exit.models.archs import RESNET_STAGES
from ofa_exit.models.checkpoint_sizes import sizes_of
from ofa_exit.ranges import Range, check_ranges, whole
from ofa_exit.spelling import flag

PARTS = ("encoder", "decoder")
# Tables of relative positions grow with the square of texts, and with the fourth power of images:
# the largest ones below take 2 GB.
ARGUMENTS = {
    **{f"{part}_{size}": whole(1, 100_000) for part in PARTS for size in (
        "embed_dim", "ffn_embed_dim")},
    **{f"{part}_{size}": whole(1, 1_000) for part in PARTS for size in (
        "layers", "attention_heads")},
    **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), Range(0, 1)),
    **{f"{part}_drop_path_rate": Range(0, below=1) for part in (*PARTS, "resnet")},
    **dict.fromkeys(("max_source_positions", "max_target_positions"), whole(3, 16_384)),
    "token_bucket_size": whole(2, 16_384),
    "image_bucket_size": whole(1, 128),
    "orig_patch_image_size": whole(16, 100_000),
    "code_image_size": whole(0, 100_000),
    "resnet_width": whole(1, 10_000),
    "attn_scale_factor": Range(above=0),
}  # fmt: skip
# The encoder's sizes are those of a decoder without its own; the others serve images alone.
_OPTIONAL = ("decoder_embed_dim", "decoder_ffn_embed_dim", "orig_patch_image_size",
             "code_image_size")  # fmt: skip
# Arguments that the shapes of weights tell, of what is built. A wrong width is named with its
# entries when they are loaded.
_OF_SHAPES = (
    *("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"),
    *("resnet_type", "resnet_width"),
)


def check_arguments(arguments: Any, named: Callable[[str], str] = flag) -> None:
    """Raise ValueError for arguments that no model can have, alone or together.

    Args:
        arguments: named as in ``OFAConfig``. Those that are missing are not checked.
        named: how a message calls an argument.
    """
    check_ranges(arguments, ARGUMENTS, named)
    for name in ARGUMENTS:
        if name not in _OPTIONAL and getattr(arguments, name, 0) is None:
            raise ValueError(f"{named(name)} is None: give a number")
    head = getattr(arguments, "exit_head", "")
    if not isinstance(head, str):
        raise ValueError(f"{named('exit_head')} is {head!r}: give the name of a head")
    resnet = getattr(arguments, "resnet_type", next(iter(RESNET_STAGES)))
    if resnet not in list(RESNET_STAGES):
        raise ValueError(
            f"{named('resnet_type')} is {resnet!r}: give one of {', '.join(RESNET_STAGES)}"
        )
    for part in PARTS:
        names = [f"{part}_embed_dim", f"{part}_attention_heads"]
        channels, heads = (getattr(arguments, name, None) for name in names)
        if channels and heads and channels % heads:
            raise ValueError(
                f"{named(names[0])} is {channels}, which {named(names[1])} {heads} do not divide: "
                f"give a multiple of {heads}"
            )


def check_arguments_of(
    path: str, arguments: Any, weights: Mapping[str, Any], overrides: Mapping[str, Any]
) -> None:
    """Raise ValueError for arguments of a checkpoint that cannot be those of its weights.

    Args:
        path: of the checkpoint.
        arguments: of its model, with all defaults.
        weights: its state dict, which may be damaged: shapes that say nothing are passed over.
        overrides: of --model-overrides, which are part of ``arguments``.
    """

    def named(name: str) -> str:
        return f"--model-overrides: {name}" if name in overrides else f"{path}: its model's {name}"

    try:
        check_arguments(arguments, named)
    except ValueError as error:
        given = any(named(name) in str(error) for name in overrides)
        raise ValueError(f"{error}" if given else f"{error}, by --model-overrides") from None
    try:
        sizes = sizes_of(dict(weights)) if all(map(_is_tensor, weights.values())) else {}
    except (AttributeError, LookupError, TypeError):
        return
    for name in filter(sizes.__contains__, _OF_SHAPES):
        value = getattr(arguments, name, None)
        if value is not None and value != sizes[name]:
            raise ValueError(
                f"{named(name)} is {value!r}, but that of the weights is {sizes[name]!r}: give "
                f"--model-overrides \"{{'{name}': {sizes[name]!r}}}\""
            )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
