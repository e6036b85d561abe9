"""Models with linear heads, criterions over them, and their losses by slow loops."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY, CRITERION_REGISTRY
from fairseq.data import Dictionary
from torch import Tensor

import ofa_exit.plugin  # noqa: F401
from helpers.slow_losses import at_targets, cross_entropies, divergences
from helpers.small_models import VOCAB, nano, training_batch

TASK = SimpleNamespace(target_dictionary=Dictionary())
DEPTH = 6


def model(layers: str | None = "1,3", **options: Any) -> Any:
    """ofa_nano in eval mode, with linear heads of different weights."""
    if layers:
        options = {"exit_layers": layers, "exit_head": "linear", **options}
    return nano(**options)


def criterion(name: str, **options: Any) -> Any:
    config = CRITERION_DATACLASS_REGISTRY[name](**{"sentence_avg": False, **options})
    return CRITERION_REGISTRY[name].build_criterion(config, TASK).train()


def sample(rows: int = 3, full: bool = True) -> dict[str, Any]:
    """A batch, with allowed words and confidences if ``full``."""
    made = training_batch(rows)
    if full:
        allowed = torch.rand(*made["target"].shape, VOCAB) < 0.3
        made["constraint_masks"] = allowed.scatter(2, made["target"].unsqueeze(2), True)
        made["conf"] = torch.rand(rows)
    return made


def exit_logits(built: Any, batch: dict[str, Any], rows: list[int]) -> dict[int, Tensor]:
    """Word scores [M, V] after every head and the last layer, from the definition."""
    decoder = built.decoder
    _, extra = built(**batch["net_input"], features_only=True, return_layers=True)
    found = {}
    for layer in [*decoder.exit_heads.layers, DEPTH]:
        hidden = extra["layer_states"][layer].flatten(0, 1)[rows]
        norm, weight = decoder.layer_norm, decoder.output_projection.weight
        if layer < DEPTH and decoder.exit_heads.trained:
            norm = decoder.exit_heads[str(layer)]["norm"]
            weight = decoder.exit_heads[str(layer)]["output_projection"].weight
        normed = F.layer_norm(hidden, hidden.shape[-1:], norm.weight, norm.bias)
        found[layer] = normed @ weight.t()
    return found


def slow_terms(
    logits: dict[int, Tensor],
    tokens: dict[str, Any],
    temperature: float = 1.0,
    epsilon: float = 0.0,
) -> tuple[dict[int, Tensor], dict[tuple[int, int], Tensor]]:
    """Cross-entropies by exit, and T²·KL by (student, teacher), summed over tokens."""
    label = {i: sum(cross_entropies(z, tokens, epsilon)) for i, z in logits.items()}
    distilled = {
        (i, j): sum(divergences(logits[j], logits[i], tokens, temperature))
        for i in logits
        for j in logits
        if i != j
    }
    return label, distilled


def slow_terms_of(
    built: Any, batch: dict[str, Any], **options: float
) -> tuple[dict[int, Tensor], dict[tuple[int, int], Tensor]]:
    tokens = at_targets(batch)
    return slow_terms(exit_logits(built, batch, tokens["rows"]), tokens, **options)
