"""BLIPEE's adversarial losses: feature classifiers against exit transformers (Eqs. 2 and 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


def feature_classifier_loss(final: Tensor, exit: Tensor) -> Tensor:
    """Return the classifier's loss per token.

    -log D(h^N) - log(1 - D(E(h^i))) (BLIPEE Eq. 2).

    Args:
        final, exit: logits of D for the features of the final layer and of the exit, [M] each, of
            any floating type.

    Returns: float32 [M], in nats.
    """
    return F.softplus(-final.float()) + F.softplus(exit.float())


def generator_loss(exit: Tensor) -> Tensor:
    """Return the exit's adversarial loss per token.

    -log D(E(h^i)) (BLIPEE Eq. 3).

    Args:
        exit: logits of D for the features of the exit, [M], of any floating type.

    Returns: float32 [M], in nats.
    """
    return F.softplus(-exit.float())


def count_correct(final: Tensor, exit: Tensor) -> Tensor:
    """Count the features that the classifier assigns correctly.

    Args:
        final, exit: logits of D, [M] each, as for ``feature_classifier_loss``.

    Returns: one integer from 0 to 2·M.
    """
    return (final > 0).sum() + (exit <= 0).sum()


def frozen_scores(classifier: nn.Module, features: Tensor) -> Tensor:
    """Return the classifier's scores with gradients for ``features`` alone.

    Args:
        classifier: a module whose parameters get no gradient here.
        features: [M, C].

    Returns: logits of D, [M].
    """
    detached = {name: p.detach() for name, p in classifier.named_parameters()}
    return functional_call(classifier, detached, (features,))


def relative_spread(exit: Tensor, final: Tensor) -> Tensor:
    """Return the variance of an exit's features over the tokens, relative to the final layer's.

    Near 0, the exit gives the same features for every token. This is the mode collapse of
    adversarial training (BLIPEE Section 3.3).

    Args:
        exit, final: features, [M, C] each, of any floating type.

    Returns: one float32; NaN for a single token.
    """
    both = torch.stack([exit.float(), final.float()])  # [2, M, C]
    exit_variance, final_variance = both.var(dim=1).sum(dim=1).unbind()
    return exit_variance / final_variance
