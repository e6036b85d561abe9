"""BLIPEE's adversarial losses: feature classifiers against exit transformers (Eqs. 2 and 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


def feature_classifier_loss(final: Tensor, exit: Tensor) -> Tensor:
    """-log D(h^N) - log(1 - D(E(h^i))), token by token (BLIPEE Eq. 2).

    final, exit: scores (logits of D) of the final layer's and the exit's features, [M] each, of
    any floating type. Returns float32 [M], in nats.
    """
    return F.softplus(-final.float()) + F.softplus(exit.float())


def generator_loss(exit: Tensor) -> Tensor:
    """-log D(E(h^i)), token by token (BLIPEE Eq. 3); shapes as above."""
    return F.softplus(-exit.float())


def told_apart(final: Tensor, exit: Tensor) -> Tensor:
    """How many of the 2·M features, each alone, the classifier put on the right side."""
    return (final > 0).sum() + (exit <= 0).sum()


def frozen_scores(classifier: nn.Module, features: Tensor) -> Tensor:
    """Scores through which gradients reach ``features`` and not the classifier's parameters."""
    held = {name: p.detach() for name, p in classifier.named_parameters()}
    return functional_call(classifier, held, (features,))


def relative_spread(exit: Tensor, final: Tensor) -> Tensor:
    """Variance over the tokens of an exit's features as a share of the final layer's.

    Near 0, the exit says the same of every token: the mode collapse of adversarial training
    (BLIPEE Section 3.3). features: [M, C] each; NaN for a single token. Returns one float32.
    """
    both = torch.stack([exit.float(), final.float()])
    own, wanted = both.var(dim=1).sum(dim=1).unbind()
    return own / wanted
