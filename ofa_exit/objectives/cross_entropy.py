"""Token cross-entropy with OFA's options: smoothing, allowed answers, confidence, drop-worst."""

import torch
from torch import Tensor


def token_rows(target: Tensor, padding_idx: int, ntokens: int) -> Tensor:
    """Which places of a batch hold a target token, as indices into the flattened [B, L].

    Computing losses only there keeps logits at [M, V] where padding and prompts would make them
    [B * L, V]. The number of tokens is known on the host from collation, and given it nothing has
    to be read from the device.

    Args:
        target: Long [B, L], ``padding_idx`` where no token is asked for.
        ntokens: M, the number of other places.

    Returns: Long [M], ascending.
    """
    wanted = target.ne(padding_idx).flatten().int()
    return wanted.argsort(descending=True, stable=True)[:ntokens]


def token_cross_entropy(
    logits: Tensor,
    target: Tensor,
    epsilon: float = 0.0,
    allowed: Tensor | None = None,
    confidence: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Label-smoothed cross-entropy of each token, and without smoothing (MuE Eq. 13's summand).

    ``(1 - eps - eps_i) * nll + eps_i * sum over words of -log p``, eps_i = eps / (V - 1), so that
    the target keeps 1 - eps and every other word has eps_i. With ``allowed``, log p is normalised
    and smoothed over the allowed words alone: eps_i = eps / (allowed words - 1 + 1e-6).
    ``confidence`` multiplies all log-probabilities of its token.

    Args:
        logits: [M, V] of any floating type; everything is computed in float32.
        target: Long [M]. A target outside ``allowed`` gives an infinite loss.
        epsilon: label smoothing, 0 <= eps < 1.
        allowed: Bool [M, V] or None.
        confidence: [M] or None.

    Returns: smoothed loss and negative log-likelihood, in nats, float32 [M] each.
    """
    logits = logits.float()
    words: Tensor | int = logits.size(-1)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
        words = allowed.sum(-1)
    # -log p of a word is log_norm - its logit: no second [M, V] of log-probabilities is kept.
    log_norm = logits.logsumexp(-1)
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
    """How many of M tokens the drop-worst rule keeps: the share 1 - ratio, rounded down.

    Differs from OFA: one token is always kept, where a batch of few tokens would keep none.
    """
    return max(1, int(ntokens * (1 - drop_ratio)))


def drop_worst(loss: Tensor, kept: int) -> Tensor:
    """The ``kept`` smallest of the tokens' losses [M]: the others are taken for wrong labels."""
    return loss if kept == loss.numel() else loss.topk(kept, largest=False).values
