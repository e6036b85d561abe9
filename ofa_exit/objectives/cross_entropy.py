"""Token cross-entropy with OFA's options: smoothing, allowed answers, confidence, drop-worst."""

import torch
from torch import Tensor


def token_rows(target: Tensor, padding_idx: int, ntokens: int) -> Tensor:
    """Return the positions of target tokens in the flattened batch.

    Losses at these positions alone need logits [M, V], not [B·L, V] with padding and prompts. The
    number of tokens is known from collation, so nothing is read from the device.

    Args:
        target: Long [B, L], ``padding_idx`` where there is no target.
        ntokens: M, the number of targets.

    Returns: indices into the B·L positions, Long [M], ascending.
    """
    has_target = target.ne(padding_idx).flatten().int()
    return has_target.argsort(descending=True, stable=True)[:ntokens]


def token_cross_entropy(
    logits: Tensor,
    target: Tensor,
    epsilon: float = 0.0,
    allowed: Tensor | None = None,
    confidence: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of each token, with label smoothing and without.

    (1 - ε - ε_i)·nll + ε_i·Σ_v -log p(v) with ε_i = ε / (V - 1) (the summand of MuE Eq. 13). The
    target keeps 1 - ε and every other word gets ε_i.

    Args:
        logits: [M, V] of any floating type; everything is computed in float32.
        target: Long [M]. A target outside ``allowed`` gives an infinite loss.
        epsilon: label smoothing, 0 <= ε < 1.
        allowed: Bool [M, V] or None. Probabilities are normalised and smoothed over the allowed
            words alone, with ε_i = ε / (allowed words - 1 + 1e-6).
        confidence: weight of each token's log-probabilities, [M], or None.

    Returns: smoothed loss and negative log-likelihood, in nats, float32 [M] each.
    """
    logits = logits.float()
    words: Tensor | int = logits.size(-1)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
        words = allowed.sum(-1)
    # -log p(v) = log_norm - logit(v), so no log-probabilities [M, V] are stored.
    log_norm = logits.logsumexp(-1)  # [M]
    nll = log_norm - logits.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    loss = nll
    if epsilon > 0:
        if allowed is not None:
            logits = logits.masked_fill(~allowed, 0.0)
            eps_i = epsilon / (words - 1 + 1e-6)
        else:
            eps_i = epsilon / (words - 1)
        loss = (1 - epsilon - eps_i) * nll + eps_i * (words * log_norm - logits.sum(-1))
    if confidence is not None:
        loss, nll = loss * confidence.float(), nll * confidence.float()
    return loss, nll


def tokens_kept(ntokens: int, drop_ratio: float) -> int:
    """Return how many tokens the drop-worst rule keeps: the share 1 - ratio, rounded down.

    Differs from OFA: one token is always kept, where a batch of few tokens would keep none.
    """
    return max(1, int(ntokens * (1 - drop_ratio)))


def drop_worst(loss: Tensor, kept: int, by: Tensor | None = None) -> Tensor:
    """Return the ``kept`` smallest of the losses [M]; the others may come from wrong labels.

    Args:
        by: [M], what tokens are compared by instead of ``loss``.
    """
    if kept == loss.numel():
        return loss
    if by is None:
        return loss.topk(kept, largest=False).values
    return loss.index_select(0, by.topk(kept, largest=False).indices)
