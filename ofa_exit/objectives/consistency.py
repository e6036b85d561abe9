"""CALM's loss of a learned confidence: is a layer's word already the last layer's?"""

import torch
import torch.nn.functional as F
from torch import Tensor


def balanced_consistency_loss(logits: Tensor, consistent: Tensor) -> Tensor:
    """Return the class-balanced cross-entropy of each layer's classifier, mean over layers.

        L = 1/K · Σ_i mean over tokens of (1 - share of the label's class) · -log p_i(label)

    CALM (Schuster et al. 2022), after the authors' code. A token weighs the share of the other
    class in the batch, so both classes have the same total weight in a layer. A layer whose tokens
    are all of one class adds 0.

    Args:
        logits: of go on and of exit, [K, M, 2], for K layers before the last and M tokens.
        consistent: Bool [K, M], the labels: where a layer's word is the last layer's.

    Returns: float32 scalar, in nats.
    """
    labels = consistent.long()
    tokens = torch.stack([(~consistent).sum(1), consistent.sum(1)], 1)  # of each class, [K, 2]
    other = tokens.flip(1).gather(1, labels) / labels.size(1)  # share of the other class, [K, M]
    nll = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
    return (other * nll.view_as(other)).mean()


def first_consistent_loss(logits: Tensor, consistent: Tensor) -> Tensor:
    """Return the negative log-likelihood of the first consistent layer, mean over tokens.

    With m_i the probability of exit after layer i,

        log p(i) = Σ_j<i log(1 - m_j) + log m_i

    and m = 1 for the last layer, which takes the tokens without a consistent layer before it.

    Differs from the "geometric-like" loss of the authors' code: there the last layer has an m_N of
    the classifier, and the N values are normalised by a softmax.

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
