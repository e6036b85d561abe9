"""Equal texts of a split encoder: one text pass in a batch, and one for a constant prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn

from ofa_exit.models.encoder_pass import EncoderPass
from ofa_exit.models.positions import ShapeCache
from ofa_exit.policies.base import ExitPolicy, Gate
from ofa_exit.runtime.rows import from_host


@dataclass(frozen=True)
class Texts:
    """The U distinct texts of S sentences.

    Attributes:
        tokens: Long [U, T].
        rows: Long [S], the text of each sentence; None if each has its own.
        only: the key of the text if there is one alone, U = 1.
    """

    tokens: Tensor
    rows: Optional[Tensor] = None
    only: Optional[str] = None


def distinct_texts(src_tokens: Tensor, text_keys: Optional[Sequence[str]]) -> Texts:
    """Return the distinct texts of a batch. Nothing is read from the device.

    Args:
        src_tokens: Long [S, T].
        text_keys: what the host knows a text by, one per sentence; None: nothing.

    Raises:
        ValueError: there are not as many keys as sentences.
    """
    if text_keys is None:
        return Texts(src_tokens)
    if len(text_keys) != len(src_tokens):
        raise ValueError(
            f"text_keys has {len(text_keys)} entries and src_tokens {len(src_tokens)} rows: give "
            "one key per row, or none"
        )
    first_rows: dict[str, int] = {}
    for row, key in enumerate(text_keys):
        first_rows.setdefault(key, row)
    only = text_keys[0] if len(first_rows) == 1 else None
    if len(first_rows) == len(text_keys):
        return Texts(src_tokens, only=only)
    places = {key: place for place, key in enumerate(first_rows)}
    tokens = src_tokens[from_host(list(first_rows.values()), src_tokens.device)]
    rows = from_host([places[key] for key in text_keys], src_tokens.device)
    return Texts(tokens, rows, only)


def run_prompt(
    text_pass: EncoderPass,
    prompt: str,
    gate: Optional[Gate],
    policy: Optional[ExitPolicy],
    cache: ShapeCache,
) -> Tensor:
    """Run the pass of a text, unless ``cache`` has one of the same text, gate, policy and weights.

    Args:
        text_pass: of one row, not run yet.
        prompt: the text's key.
        gate: the policy's, which keeps the policy alive in the cache; None: full depth.

    Returns: the layers that were run now, Long [1].
    """
    ran = []

    def run() -> tuple[Tensor, Tensor]:
        ran.append(text_pass.run(gate))
        return text_pass.output, text_pass.layers_used

    # Fields of a policy may change, thresholds for example, and so may weights: of any layer, and
    # by loading them into a part of the model, which does not clear the cache.
    fields = "" if gate is None else repr(vars(policy))
    shape = (prompt, text_pass.x.size(1), gate, fields, versions(cache))
    text_pass.output, text_pass.layers_used = cache.once_per_shape("prompt", shape, run)
    used = text_pass.layers_used
    return used if ran else torch.zeros_like(used)


def versions(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Return what changes whenever the weights of a module do."""
    return tuple(
        (id(weight), 0 if weight.is_inference() else weight._version)
        for weight in module.parameters()
    )
