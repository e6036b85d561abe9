"""Fit OFA checkpoints to a model, or name the entries that do not fit."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# The structure of every released OFA checkpoint, and the only supported one.
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
# Options of OFA's scripts that the required ones imply.
IMPLIED_FLAGS = ("share_decoder_input_output_embed",)
# Buffers that follow from the arguments: the model keeps its own.
COMPUTED = ("token_rp_bucket", "image_rp_bucket", "image_position_idx", "version")

HEADS = "decoder.exits."
# The model itself. Any other entry belongs to a module that a criterion adds for its training.
MODEL_PARTS = ("encoder.", "decoder.")


def check_structure(cfg: Any) -> None:
    """Check that ``cfg`` describes a supported variant of OFA.

    Raises:
        ValueError: naming the options that differ.
    """
    wrong = [
        f"{name}={value}"
        for name, wanted in REQUIRED_FLAGS.items()
        if (value := getattr(cfg, name, None)) is not None and bool(value) != wanted
    ]
    if wrong:
        raise ValueError(
            f"unsupported model structure: {', '.join(wrong)}. Only the structure of the released "
            "OFA checkpoints is supported."
        )


def fit_state_dict(model: Any, state: dict[str, Tensor]) -> None:
    """Adapt ``state`` in place to ``model``.

    * If the model has a larger vocabulary or longer texts, its own initial rows are added, where
      they are to be trained (``grows_vocabulary``).
    * If it has a larger image grid, position embeddings and 2-D biases move to their new cells.
    * Missing batch-norm counters and buffers that follow from the arguments are the model's own.
    * Missing exit heads start from the backbone (``ExitHeads.init_from``).
    * Modules that a criterion adds start anew where they are missing, and are dropped where the
      model lacks them.
    * Classification heads (``classification_heads.``) are dropped with a warning.

    Raises:
        ValueError: naming every entry whose shape still differs.
    """
    own = model.state_dict()
    heads = [name for name in state if name.startswith("classification_heads.")]
    for name in heads:
        del state[name]
    if heads:
        logger.warning("ignored entries of the checkpoint: %s", ", ".join(sorted(heads)))
    for name in own:
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, own[name])
    _fit_training_parts(own, state)
    _check_buckets(own, state)
    for name, value in own.items():
        leaf = name.rsplit(".", 1)[-1]
        if leaf in COMPUTED:
            state[name] = value
        elif name in state:
            state[name] = _grown(model, name, state[name], value)
    # One tensor has three names: all must get the same new rows.
    for name in ("decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        if "encoder.embed_tokens.weight" in state:
            state[name] = state["encoder.embed_tokens.weight"]
    # After the rest has grown: missing heads start as copies of it.
    model.decoder.exit_heads.init_from(own, state, HEADS)
    _check_shapes(own, state)


def _fit_training_parts(own: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    missing = [name for name in own if not name.startswith(MODEL_PARTS) and name not in state]
    if missing:
        parts = sorted({name.split(".")[0] for name in missing})
        logger.info("missing %s initialised at random", ", ".join(parts))
    state.update({name: own[name] for name in missing})
    for name in [n for n in state if not n.startswith(MODEL_PARTS) and n not in own]:
        del state[name]


def without_training_parts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict for inference, without modules that only a training uses."""
    return {name: value for name, value in state.items() if name.startswith(MODEL_PARTS)}


def _check_buckets(own: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    for name, value in own.items():
        leaf = name.rsplit(".", 1)[-1]
        if not leaf.endswith("_rp_bucket") or name not in state:
            continue
        if state[name].shape == value.shape and not torch.equal(state[name].to(value), value):
            raise ValueError(
                f"{name}: the relative positions of the checkpoint and of this model differ. "
                "Check --token-bucket-size and --image-bucket-size."
            )


def _grown(model: Any, name: str, loaded: Tensor, own: Tensor) -> Tensor:
    """Return ``loaded`` with new rows if the model has more."""
    if loaded.shape == own.shape or loaded.dim() != 2 or loaded.shape[1:] != own.shape[1:]:
        return loaded
    if "embed_image_positions" in name or "image_rel_pos_table_list" in name:
        return _regridded(name, loaded, own)
    growing = (
        "embed_tokens.weight",
        "output_projection.weight",
        "embed_positions.weight",
    )
    if name.endswith(growing) and loaded.size(0) < own.size(0):
        if not model.grows_vocabulary:
            if "embed_positions" in name:
                return loaded  # a misfit: the positions would be those of no training
            raise ValueError(
                f"the checkpoint has {loaded.size(0)} words and the vocabulary {own.size(0)}. Give "
                "the vocabulary of its training (--bpe-dir, --code-dict-size, --num-bins)"
            )
        logger.info("%s: %d rows added", name, own.size(0) - loaded.size(0))
        return torch.cat([loaded, own[loaded.size(0) :].to(loaded)])
    return loaded


def _regridded(name: str, loaded: Tensor, own: Tensor) -> Tensor:
    """Move the rows of a square grid to their cells of a larger one.

    Embeddings [side² + 1, C] have one row per cell, after a row for "no cell". Biases
    [side² + 3, heads] have one row per offset between cells, before three rows for "no cell".
    """
    extra = 1 if "embed_image_positions" in name else 3  # rows for "no cell"
    old, new = (round((t.size(0) - extra) ** 0.5) for t in (loaded, own))  # sides of both grids
    if old > new or loaded.size(0) != old**2 + extra or (extra == 3 and (new - old) % 2):
        return loaded  # a misfit: no grid, or one whose centre is no offset of zero
    first = 0 if extra == 1 else (new - old) // 2  # offsets are centred on zero
    grown = own.clone().to(loaded)
    cells = slice(1, None) if extra == 1 else slice(0, -3)
    square = grown[cells].view(new, new, -1)  # a view: the next line writes into grown
    square[first : first + old, first : first + old] = loaded[cells].view(old, old, -1)
    if extra == 1:
        grown[0] = loaded[0]
    else:
        grown[-3:] = loaded[-3:]
    logger.info("%s: moved from a %dx%d grid to %dx%d", name, old, old, new, new)
    return grown


def _check_shapes(own: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    misfits = []
    for name in sorted(own.keys() | state.keys()):
        loaded, built = (
            str(tuple(tensors[name].shape)) if name in tensors else "missing"
            for tensors in (state, own)
        )
        if loaded != built:
            misfits.append(f"{name}: checkpoint {loaded}, model {built}")
    if misfits:
        more = f"; and {len(misfits) - 5} more" if len(misfits) > 5 else ""
        raise ValueError(
            f"the checkpoint does not fit this model. {'; '.join(misfits[:5])}{more}. Check --arch "
            "and the vocabulary (--bpe-dir, --code-dict-size, --num-bins)"
        )
