"""What a gate learns from: features and agreement of every word of generations at full depth."""

import contextlib
from collections.abc import Iterator
from typing import Any, Optional

import torch
from torch import Tensor

from ofa_exit.models.word_scores import MAX_SCORES_AT_ONCE
from ofa_exit.policies.measures import log_norms, log_step
from ofa_exit.runtime.token_tree import TokenTree
from ofa_exit.testing import record_states


class Records:
    """Features and labels of M words after each layer but the last.

    A word is a position of a row: of a hypothesis of the search, or of an answer of a closed set
    where a decision is made.

    Attributes:
        layers: of the decoder.
    """

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self._features: list[list[Tensor]] = [[] for _ in range(layers - 1)]
        self._labels: list[list[Tensor]] = [[] for _ in range(layers - 1)]

    def __len__(self) -> int:
        return sum(map(len, self._labels[0]))

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return float32 [M, F] in the order of ``GATE_FEATURES`` and Bool [M] after a layer."""
        return torch.cat(self._features[layer - 1]), torch.cat(self._labels[layer - 1])

    @torch.no_grad()
    def add(
        self, decoder: Any, states: list[Tensor], tokens: Tensor, tree: Optional[TokenTree]
    ) -> None:
        """Add a call of the decoder at full depth.

        Args:
            states: before layer 1 and after each layer, [N, P, C] each.
            tokens: Long [N, L], whose last P positions were run.
            tree: how the tokens follow each other where they are no plain sequence.
        """
        rows, positions, _ = states[0].shape
        step = torch.arange(tokens.size(1) - positions, tokens.size(1), device=tokens.device)
        chosen = tokens[:, -positions:].ne(decoder.padding_idx)  # Bool [N, P]
        words, allowed = None, None
        if tree is not None:
            step, chosen = tree.depth, tree.asked
            if tree.words is not None and tree.allowed is not None:
                words, allowed = tree.words, tree.allowed()[chosen]  # Bool [M, W]
        steps = log_step(step.expand(rows, positions)[chosen])[None]  # [1, M]
        last = best_words(decoder, states[-1][chosen], words, allowed)
        for layer in range(1, self.layers):
            previous, current = states[layer - 1], states[layer]
            norms = log_norms(previous, current)[:, chosen]  # [3, M]
            agrees = best_words(decoder, current[chosen], words, allowed) == last
            self._features[layer - 1].append(torch.cat([norms, steps]).T.cpu())
            self._labels[layer - 1].append(agrees.cpu())


def best_words(
    decoder: Any, states: Tensor, words: Optional[Tensor], allowed: Optional[Tensor]
) -> Tensor:
    """Return the best word of each state by the shared head, Long [M].

    Args:
        states: [M, C].
        words: Long [W], those that are scored; None for the whole vocabulary.
        allowed: Bool [M, W], the words that can be next; None for all.
    """
    columns = decoder.output_projection.weight.size(0) if words is None else len(words)
    chunk = max(1, MAX_SCORES_AT_ONCE // columns)
    best = []
    for first in range(0, len(states), chunk):
        scores = decoder.shared_scores(states[first : first + chunk], words)
        if allowed is not None:
            scores = scores.masked_fill(~allowed[first : first + chunk], float("-inf"))
        best.append(scores.argmax(dim=-1))
    return torch.cat(best) if best else states.new_zeros(0, dtype=torch.long)


@contextlib.contextmanager
def recording(decoder: Any) -> Iterator[Records]:
    """Record every call of a decoder, which has to run at full depth, while in the context.

    fairseq's search calls ``decoder.forward``, which runs no hook of the module.
    """
    records, forward = Records(len(decoder.layers)), decoder.forward
    with record_states(decoder.layers) as passes:

        def recorded(prev_output_tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
            result = forward(prev_output_tokens, *args, **kwargs)
            records.add(decoder, passes.pop(), prev_output_tokens, kwargs.get("tree"))
            return result

        decoder.forward = recorded
        try:
            yield records
        finally:
            del decoder.forward  # the class's again
