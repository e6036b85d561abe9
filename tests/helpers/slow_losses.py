"""Token losses one token at a time, in float64 and with gradients: what the criterions must equal.

All take the M target tokens of a batch; ``allowed`` and ``confidence`` may be None.
"""

from __future__ import annotations

import torch
from torch import Tensor


def at_targets(sample: dict, pad: int = 1) -> dict:
    """The target tokens of a batch: places in the flattened batch, words, masks, confidences."""
    columns = sample["target"].size(1)
    rows = [n for n, word in enumerate(sample["target"].flatten().tolist()) if word != pad]
    masks, conf = sample.get("constraint_masks"), sample.get("conf")
    return {
        "rows": rows,
        "target": [int(sample["target"].flatten()[n]) for n in rows],
        "allowed": None if masks is None else [masks.flatten(0, 1)[n] for n in rows],
        "confidence": None if conf is None else [float(conf[n // columns]) for n in rows],
    }


def log_probabilities(logits: Tensor, allowed: Tensor | None, temperature: float = 1.0) -> Tensor:
    """Of the allowed words alone, in their order."""
    logits = logits.double() / temperature
    kept = logits if allowed is None else logits[allowed]
    return kept - kept.exp().sum().log()


def cross_entropies(logits: Tensor, tokens: dict, epsilon: float = 0.0) -> list[Tensor]:
    """(1 - ε - ε_i)·nll + ε_i·Σ_v -log p(v), times the confidence (MuE Eq. 13)."""
    losses = []
    for m, target in enumerate(tokens["target"]):
        allowed = None if tokens["allowed"] is None else tokens["allowed"][m]
        logp = log_probabilities(logits[m], allowed)
        gold = logp[target if allowed is None else int(allowed[:target].sum())]
        others = len(logp) - 1 if allowed is None else len(logp) - 1 + 1e-6
        eps_i = epsilon / others
        loss = -(1 - epsilon - eps_i) * gold - eps_i * logp.sum()
        losses.append(loss if tokens["confidence"] is None else tokens["confidence"][m] * loss)
    return losses


def divergences(
    teacher: Tensor, student: Tensor, tokens: dict, temperature: float = 1.0
) -> list[Tensor]:
    """T²·KL(teacher, student), times the confidence; the teacher gets no gradient."""
    losses = []
    for m in range(len(tokens["target"])):
        allowed = None if tokens["allowed"] is None else tokens["allowed"][m]
        q = log_probabilities(teacher[m].detach(), allowed, temperature)
        p = log_probabilities(student[m], allowed, temperature)
        loss = temperature**2 * sum(q[v].exp() * (q[v] - p[v]) for v in range(len(q)))
        losses.append(loss if tokens["confidence"] is None else tokens["confidence"][m] * loss)
    return losses


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """The gradients of a model by name, which are then removed."""
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same_gradients(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal but for rounding; a missing gradient is 0."""
    for name in {*ours, *expected}:
        zero = torch.zeros_like((ours if name in ours else expected)[name])
        one, other = ours.get(name, zero), expected.get(name, zero)
        torch.testing.assert_close(
            one, other, rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
