"""DeeCap's imitation loss: how far imitated states of later layers are from the real ones."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def imitation_loss(
    pooled: Mapping[int, Tensor], imitate: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """Return how far the imitations are from the states that they imitate, by token.

        mean over i < N of mean over j > i of 1 - cos(û_j|i, sg[u_j])

    DeeCap (Fei et al. 2022), after the authors' code. sg: the imitated state is a constant.
    Cosines are computed in float32.

    Args:
        pooled: by layer, 1 to N, its pooled states u_i [M, C].
        imitate: of j and u_i: û_j|i [M, C], the imitation of layer j by layer i.

    Returns: [M], from 0 to 2.
    """
    last = max(pooled)
    losses = []
    for layer in range(1, last):
        cosines = [
            F.cosine_similarity(
                imitate(later, pooled[layer]).float(), pooled[later].detach().float(), dim=-1
            )
            for later in range(layer + 1, last + 1)
        ]
        losses.append(1 - torch.stack(cosines).mean(0))
    return torch.stack(losses).mean(0)
