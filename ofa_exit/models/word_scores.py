"""Word scores of the decoder: by the shared norm and projection, or by heads of their own."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofa_exit.heads.base import ExitHeads
from ofa_exit.models.positions import ShapeCache
from ofa_exit.runtime.rows import from_host, to_host

MAX_SCORES_AT_ONCE = 2**26
"""Word scores that are held at a time, whatever the batch: 256 MB in float32."""


class StepScores:
    """Word scores of one decoding step: a row that exits where its gate has just scored words
    keeps these scores, so that they are computed once.

    Attributes:
        active: [R, V], scores of the active rows after the layer that ran last, if a gate asked.
        rows: places, among all N rows, of the rows that exited with scores.
        parts: their scores, [M, V] each, in the order of ``rows``.
    """

    def __init__(self) -> None:
        self.active: Optional[Tensor] = None
        self.rows: list[int] = []
        self.parts: list[Tensor] = []
        self._exited: set[int] = set()

    def keep(self, rows: list[int], exited: list[bool]) -> None:
        """Keep the scores of the rows that exit now.

        Args:
            rows: places of the R active rows among all N.
            exited: which of them have exited, now or before.
        """
        leaving = [i for i, row in enumerate(rows) if exited[i] and row not in self._exited]
        self._exited.update(rows[i] for i in leaving)
        if self.active is not None and leaving:
            self.rows += [rows[i] for i in leaving]
            self.parts.append(self.active[from_host(leaving, self.active.device)])


class WordScores(ShapeCache):
    """What turns hidden states into scores of words; the base of the decoder's stack."""

    layer_norm: nn.LayerNorm
    output_projection: nn.Linear
    exits: ExitHeads

    @property
    def exit_heads(self) -> ExitHeads:
        return self.exits

    def output_layer(self, features: Tensor) -> Tensor:
        """Project normed features [..., C] to word scores [..., V]."""
        return self.output_projection(features)

    def shared_scores(self, hidden: Tensor, words: Optional[Tensor] = None) -> Tensor:
        """Return the word scores [..., V] of hidden states [..., C]: final norm and projection.

        Args:
            words: Long [W], the words to score; None for the whole vocabulary.
        """
        features = self.layer_norm(hidden)
        if words is None:
            return self.output_layer(features)
        return F.linear(features, self.output_projection.weight[words])

    def scores_fit(self, rows: int) -> bool:
        """Return whether the scores of so many rows may be held at a time."""
        return rows * self.output_projection.weight.size(0) <= MAX_SCORES_AT_ONCE

    def own_scores(self, layer: int, features: Tensor, words: Optional[Tensor] = None) -> Tensor:
        """Return the word scores [..., V] that the head after ``layer`` gives features [..., C].

        Args:
            words: Long [W], the words to score; None for the whole vocabulary.
        """
        return self.exit_heads.scores(layer, features, words, self.shared_scores)

    def head_scores(
        self,
        layer: int,
        features: Tensor,
        words: Optional[Tensor],
        allowed: Optional[Tensor],
        fn: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Apply ``fn`` to the word scores that the head after ``layer`` gives, in chunks.

        Args:
            features: [N, P, C], what the head made.
            words: Long [W] of a closed set of answers; None for the whole vocabulary.
            allowed: Bool [N, P, W], the words that can be next.
            fn: see ``GateInput.scores``.

        Returns:
            [N, P]: what ``fn`` returns.
        """
        shape, flat = features.shape[:2], features.flatten(0, 1)
        if words is None or allowed is None:
            words, allowed = None, None
        columns = self.output_projection.weight.size(0) if words is None else len(words)
        chunk = max(1, MAX_SCORES_AT_ONCE // columns)
        results = []
        for first in range(0, len(flat), chunk):
            part = flat[first : first + chunk]
            logits = self.own_scores(layer, part, words)  # [M, V or W]
            if allowed is not None:
                mask = ~allowed.flatten(0, 1)[first : first + chunk]
                logits = logits.masked_fill(mask, float("-inf"))
            results.append(fn(logits))
        return torch.cat(results).view(shape)

    def rows_by_head(
        self, layers_used: Optional[Tensor], heads: list[int], scored: Collection[int] = ()
    ) -> Optional[dict[int, Tensor]]:
        """Group rows by the head that scores their words, in at most one host read.

        Args:
            layers_used: Long [M], the layers that each row used; None if no gate was asked.
            heads: layers whose heads were active.
            scored: rows that have their scores, which are left out.

        Returns:
            Layer of the head, 0 for the decoder's own words -> Long rows. None if all rows have
            the decoder's own.
        """
        if layers_used is None:
            return None
        if len(scored) == len(layers_used):
            return {}  # nothing is left to group, so nothing is read
        if heads and self.exit_heads.scores_words:
            layers = to_host(layers_used)
        elif scored:
            layers = [0] * len(layers_used)
        else:
            return None
        rows: dict[int, list[int]] = {}
        for row, layer in enumerate(layers):
            if row not in scored:
                rows.setdefault(layer if layer in heads else 0, []).append(row)
        return {layer: from_host(found, layers_used.device) for layer, found in rows.items()}

    def word_scores(
        self,
        hidden: Tensor,
        rows_by_head: Optional[dict[int, Tensor]],
        words: Optional[Tensor] = None,
        scored: Optional[StepScores] = None,
    ) -> Tensor:
        """Return the word scores [M, V] of states at exit [M, C], each by what it left through.

        Args:
            rows_by_head: see the method of this name.
            words: Long [W], the words to score; None for the whole vocabulary.
            scored: scores of the rows that are not in ``rows_by_head``.
        """
        if rows_by_head is None:
            return self.shared_scores(hidden, words)
        parts: list[Tensor] = []
        order: list[Tensor] = []
        if scored is not None and scored.rows:
            parts += scored.parts
            order.append(from_host(scored.rows, hidden.device))
        for layer, rows in rows_by_head.items():
            if layer == 0:
                parts.append(self.shared_scores(hidden[rows], words))
            else:
                parts.append(self.own_scores(layer, hidden[rows], words))
            order.append(rows)
        scores = parts[0].new_empty(len(hidden), parts[0].size(-1))
        scores[torch.cat(order)] = torch.cat(parts)
        return scores

    def word_prices(
        self, rows_by_head: Optional[dict[int, Tensor]], words: Optional[int] = None
    ) -> Optional[list[tuple[int, int]]]:
        """Return (FLOPs, rows) of each group of ``rows_by_head``."""
        if rows_by_head is None:
            return None
        shared, own = self.word_flops(words), self.exit_heads.score_flops
        groups = rows_by_head.items()
        return [(own(shared) if layer else shared, len(rows)) for layer, rows in groups]

    def word_flops(self, words: Optional[int] = None) -> int:
        """Return the FLOPs of scoring one token over ``words`` (None: the vocabulary): 2·C·V."""
        vocabulary, channels = self.output_projection.weight.shape
        return 2 * channels * (vocabulary if words is None else words)
