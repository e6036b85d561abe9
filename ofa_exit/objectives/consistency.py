"""CALM's loss of a learned confidence: is a layer's word already the last layer's?"""

import torch
import torch.nn.functional as F
from torch import Tensor


def balanced_consistency_loss(logits: Tensor, consistent: Tensor) -> Tensor:
    """Return the class-balanced cross-entropy of each layer's classifier, mean over layers.

        L = 1/K · Σ_i ½ · Σ_c mean over tokens of class c of -log p_i(c)

    CALM (Schuster et al. 2022) Section 3.4, after the authors' code. The two classes weigh half
    each, layer by layer. A class without tokens adds nothing.

    Args:
        logits: of go on and of exit, [K, M, 2], for K layers before the last and M tokens.
        consistent: Bool [K, M], the labels: where a layer's word is the last layer's.

    Returns: float32 scalar, in nats.
    """
    labels = consistent.long()
    tokens = torch.stack([(~consistent).sum(1), consistent.sum(1)], 1)  # of each class, [K, 2]
    weights = 0.5 / tokens.gather(1, labels)  # [K, M]
    nll = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
    return (weights * nll.view_as(weights)).sum(1).mean()


def first_consistent_loss(logits: Tensor, consistent: Tensor) -> Tensor:
    """Return the negative log-likelihood of the first consistent layer, mean over tokens.

    With m_i the probability of exit after layer i,

        log p(i) = Σ_j<i log(1 - m_j) + log m_i

    and m = 1 for the last layer, which takes the tokens without a consistent layer before it. This
    is the "geometric-like" loss of the authors' code.

    Args and returns: as ``balanced_consistency_loss``.
    """
    go_on, leave = logits.float().log_softmax(-1).unbind(-1)  # log(1 - m_i) and log m_i, [K, M]
    last = torch.ones_like(consistent[:1])  # [1, M]
    first = torch.cat([consistent, last]).int().argmax(0, keepdim=True)  # Long [1, M], from 0
    zero = torch.zeros_like(leave[:1])
    passed = torch.cat([zero, go_on.cumsum(0)])  # Σ_j<i log(1 - m_j), [K + 1, M]
    log_probability = passed + torch.cat([leave, zero])  # [K + 1, M]
    return -log_probability.gather(0, first).mean()


LOSSES = {"independent": balanced_consistency_loss, "geometric": first_consistent_loss}
