"""Self-critical sequence training: how much better a sampled caption is than its baseline."""

from __future__ import annotations

import torch
from torch import Tensor

BASELINES = ("greedy", "mean")


def advantages(rewards: Tensor, greedy: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """r(w) - b of every sampled caption, and b (Rennie et al. 2017, Eq. 7).

    The gradient of the expected reward is that of ``-(r(w) - b) log p(w)``, whatever b is, as long
    as it does not depend on the sample w; so cross-entropy on the samples, each token weighted by
    its caption's advantage, is the loss.

    Args:
        rewards: [S, K], K captions sampled for each of S images.
        greedy: [S], reward of the caption that the model decodes greedily (the baseline of
            Rennie et al.); None takes the mean of the image's other samples (Luo 2020), and
            needs K > 1.

    Returns: advantages and baselines [S, K]; where all rewards are equal the former are 0.
    """
    if greedy is not None:
        baseline = greedy.unsqueeze(1).expand_as(rewards)
    elif rewards.size(1) > 1:
        baseline = (rewards.sum(1, keepdim=True) - rewards) / (rewards.size(1) - 1)
    else:
        raise ValueError("the mean of the other samples needs two samples or more of each image")
    return rewards - baseline, baseline


def sampled_targets(
    captions: list[Tensor], limit: int, bos: int, pad: int
) -> tuple[Tensor, Tensor, int]:
    """Decoder inputs and targets of sampled captions, and the number of target tokens.

    An end that the step limit forces is no choice of the model's, and so no target.

    Args:
        captions: Long [T] each, end included, on one device.
        limit: words that the search could choose before the end was forced.

    Returns: inputs and targets Long [N, L], right-padded, and their tokens.
    """
    chosen = [caption[:limit] for caption in captions]
    target = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=pad)
    start = target.new_full((len(chosen), 1), bos)
    inputs = torch.cat([start, target[:, :-1]], dim=1).masked_fill(target.eq(pad), pad)
    return inputs, target, sum(map(len, chosen))
