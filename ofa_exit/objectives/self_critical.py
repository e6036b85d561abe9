"""Self-critical sequence training: advantages of sampled captions, and their targets."""

from __future__ import annotations

import torch
from torch import Tensor

BASELINES = ("greedy", "mean")


def advantages(rewards: Tensor, greedy: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the advantage r(w) - b of every sampled caption, and b (Rennie et al. 2017, Eq. 7).

    -(r(w) - b)·log p(w) has the gradient of the expected reward for every baseline b that does not
    depend on the sample w. The loss is therefore the cross-entropy of the samples, with each token
    weighted by the advantage of its caption.

    Args:
        rewards: [S, K], for K captions sampled per image.
        greedy: [S], reward of the greedily decoded caption (the baseline of Rennie et al.). None
            takes the mean reward of the image's other samples (Luo 2020), which needs K > 1.

    Returns: advantages and baselines, [S, K] each. Equal rewards have advantages of 0.

    Raises:
        ValueError: if there is neither ``greedy`` nor a second sample.
    """
    if greedy is not None:
        baseline = greedy.unsqueeze(1).expand_as(rewards)
    elif rewards.size(1) > 1:
        baseline = (rewards.sum(1, keepdim=True) - rewards) / (rewards.size(1) - 1)
    else:
        raise ValueError("the baseline 'mean' needs at least 2 samples per image, got 1")
    return rewards - baseline, baseline


def sampled_targets(
    captions: list[Tensor], limit: int, bos: int, pad: int
) -> tuple[Tensor, Tensor, int]:
    """Return decoder inputs and targets of sampled captions.

    An end of sentence that the step limit forces is not the model's choice, so it is no target.

    Args:
        captions: Long [T] each, end of sentence included, on one device.
        limit: number of words that the search may choose before it forces the end.
        bos, pad: indices of these symbols.

    Returns: inputs and targets, Long [N, L] each, right-padded, and the number of targets.
    """
    chosen = [caption[:limit] for caption in captions]
    target = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=pad)
    # Inputs are the targets shifted by one: bos first, and the last word of each caption dropped.
    start = target.new_full((len(chosen), 1), bos)
    inputs = torch.cat([start, target[:, :-1]], dim=1).masked_fill(target.eq(pad), pad)
    return inputs, target, sum(map(len, chosen))
