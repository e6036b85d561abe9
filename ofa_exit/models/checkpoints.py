"""Fitting OFA checkpoints to the model at hand, or refusing them by name and shape."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from ofa_exit.heads.transformer import fit_exits

logger = logging.getLogger(__name__)

# The structure that every released OFA checkpoint has; the only one built here.
REQUIRED_FLAGS = {
    "encoder_normalize_before": True,
    "decoder_normalize_before": True,
    "layernorm_embedding": True,
    "patch_layernorm_embedding": True,
    "code_layernorm_embedding": True,
    "add_type_embedding": True,
    "scale_attn": True,
    "scale_fc": True,
    "scale_heads": True,
    "disable_entangle": True,
    "share_all_embeddings": True,
    "scale_resids": False,
    "entangle_position_embedding": False,
    "encoder_prompt": False,
    "decoder_prompt": False,
    "adapter": False,
}
COMPUTED = ("token_rp_bucket", "image_rp_bucket", "image_position_idx", "version")


def refuse_other_structure(cfg: Any) -> None:
    """Raises ValueError if ``cfg`` asks for an OFA variant that is not built here."""
    wrong = [
        f"{name}={value}"
        for name, wanted in REQUIRED_FLAGS.items()
        if (value := getattr(cfg, name, None)) is not None and bool(value) != wanted
    ]
    if wrong:
        raise ValueError(
            "only the structure of the released OFA checkpoints is supported; this one differs "
            f"in: {', '.join(wrong)}"
        )


def fit_state_dict(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Adapts ``state`` in place to ``model``, or raises ValueError naming what differs.

    * a larger vocabulary or longer text: rows are added, initialised as the model's own;
    * a larger image grid: position embeddings and 2-D biases move to their cells of the new grid;
    * tables that follow from the arguments are the model's own; batch-norm counters may be missing;
    * exits that are missing start from the backbone (``exits.fit_exits``);
    * heads for other uses (``classification_heads.``) are left out, with a warning.
    """
    own = model.state_dict()
    heads = [name for name in state if name.startswith("classification_heads.")]
    for name in heads:
        del state[name]
    if heads:
        logger.warning("left out of the checkpoint: %s", ", ".join(sorted(heads)))
    for name in own:
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, own[name])
    fit_exits(own, state)
    _check_buckets(own, state)
    for name, value in own.items():
        leaf = name.rsplit(".", 1)[-1]
        if leaf in COMPUTED:
            state[name] = value
        elif name in state:
            state[name] = _grown(model, name, state[name], value)
    # One tensor under three names: rows added to each must be the same.
    for name in ("decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        if "encoder.embed_tokens.weight" in state:
            state[name] = state["encoder.embed_tokens.weight"]
    _refuse_differences(own, state)


def _check_buckets(own: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    for name, value in own.items():
        leaf = name.rsplit(".", 1)[-1]
        if not leaf.endswith("_rp_bucket") or name not in state:
            continue
        if state[name].shape == value.shape and not torch.equal(state[name].to(value), value):
            raise ValueError(
                f"{name} of the checkpoint holds other relative positions than this model computes "
                "from its arguments: check --token-bucket-size and --image-bucket-size"
            )


def _grown(model: nn.Module, name: str, loaded: Tensor, own: Tensor) -> Tensor:
    """``loaded`` with rows added where the model has more of them."""
    if loaded.shape == own.shape or loaded.dim() != 2 or loaded.shape[1] != own.shape[1]:
        return loaded
    if "embed_image_positions" in name or "image_rel_pos_table_list" in name:
        return _regridded(name, loaded, own)
    growing = (
        "embed_tokens.weight",
        "output_projection.weight",
        "embed_positions.weight",
    )
    if name.endswith(growing) and loaded.size(0) < own.size(0):
        logger.info("%s: %d rows added", name, own.size(0) - loaded.size(0))
        return torch.cat([loaded, own[loaded.size(0) :].to(loaded)])
    return loaded


def _regridded(name: str, loaded: Tensor, own: Tensor) -> Tensor:
    """Cells (or cell offsets) of a smaller square grid at their places in a larger one."""
    extra = 1 if "embed_image_positions" in name else 3  # rows that belong to no cell
    old, new = (round((t.size(0) - extra) ** 0.5) for t in (loaded, own))
    if old > new:
        return loaded
    first = 0 if extra == 1 else (new - old) // 2  # offsets are centred on zero
    grown = own.clone().to(loaded)
    cells = slice(1, None) if extra == 1 else slice(0, -3)
    square = grown[cells].view(new, new, -1)
    square[first : first + old, first : first + old] = loaded[cells].view(old, old, -1)
    if extra == 1:
        grown[0] = loaded[0]
    else:
        grown[-3:] = loaded[-3:]
    logger.info("%s: moved from a grid of side %d to %d", name, old, new)
    return grown


def _refuse_differences(own: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    lines = []
    for name in sorted(own.keys() | state.keys()):
        here = "missing" if name not in own else str(tuple(own[name].shape))
        there = "missing" if name not in state else str(tuple(state[name].shape))
        if here != there:
            lines.append(f"  {name}: checkpoint {there}, model {here}")
    if lines:
        more = f"\n  … and {len(lines) - 20} more" if len(lines) > 20 else ""
        raise ValueError(
            "the checkpoint does not fit this model; check --arch, the vocabulary (--bpe-dir, "
            "--code-dict-size, --num-bins) and the sizes below:\n" + "\n".join(lines[:20]) + more
        )
