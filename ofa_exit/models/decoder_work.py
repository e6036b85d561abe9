"""What a call of the decoder went through, and what full depth would have gone through."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Optional

from torch import Tensor

from ofa_exit.models.decoder_stack import DecoderStack
from ofa_exit.runtime.active_rows import ActiveRows
from ofa_exit.runtime.flops import Work

COUNTS = ("layers_run", "kv_backfilled", "heads_run", "head_kv_backfilled")


class WorkCounter:
    """What each sentence of a decoder call went through, counted on the host."""

    def __init__(self, decoder: DecoderStack, rows: ActiveRows, positions: int, keys: int) -> None:
        self.decoder, self.rows, self.keys = decoder, rows, keys
        self.tokens = rows.group * positions  # of all hypotheses of a sentence
        sentences = len(rows.sentences)
        self.closed = {name: [0] * sentences for name in COUNTS}
        self._open = dict.fromkeys(COUNTS, 0)  # of every active sentence
        self._cross = [0] * sentences  # layers whose cross-attention K/V were made
        self._head_cross = [0] * sentences
        self._heads: list[Work] = []  # features and word scores, in the order they were made

    def add(self, name: str, units: int = 1) -> None:
        """Count ``units`` for every active sentence."""
        self._open[name] += units

    def add_cross(self, slot: int, sentences: list[int]) -> None:
        """Count cross-attention K/V of a slot, made for these sentences."""
        made = self._cross if slot < len(self.decoder.layers) else self._head_cross
        for place in sentences:
            made[place] += 1

    def add_head(self, layer: int) -> None:
        """Count the features of every active position by the head after ``layer``."""
        self.add("heads_run")
        self._add_exits(partial(self.decoder.exit_heads.flops, layer, self.keys))

    def add_scores(self, words: Optional[Tensor]) -> None:
        """Count the scoring of every active position by a head."""
        shared = self.decoder.word_flops(None if words is None else len(words))
        price = self.decoder.exit_heads.score_flops(shared)
        self._add_exits(lambda source: price)

    def _add_exits(self, price: Callable[[int], int]) -> None:
        units = [0] * len(self._cross)
        for place in self.rows.sentences:
            units[place] = self.tokens
        self._heads.append(Work("exits", price, units))

    def close(self, sentences: list[int]) -> None:
        """Note the counts of sentences that leave the computation."""
        for name, total in self._open.items():
            for place in sentences:
                self.closed[name][place] = total

    def work(self, recomputed: bool) -> list[Work]:
        """Return what was done; ``recomputed``: skipped layers ran in full for their K/V."""
        layer, heads, rows = self.decoder.layer(1), self.decoder.exit_heads, self.rows.group
        layer_price = partial(layer.flops, self.keys)
        filled = layer_price if recomputed else lambda source: layer.self_kv_flops()

        def units(name: str, per_unit: int) -> list[int]:
            return [count * per_unit for count in self.closed[name]]

        work = [
            Work("decoder", layer_price, units("layers_run", self.tokens)),
            Work("cross_kv", layer.cross_kv_flops, self._cross),
            Work("skipped_kv", filled, units("kv_backfilled", rows)),
            *self._heads,
        ]
        if heads.trained:
            work += [
                Work("exits", heads.source_flops, self._head_cross),
                Work(
                    "exits", lambda source: heads.cache_flops(), units("head_kv_backfilled", rows)
                ),
            ]
        return work


def full_work(
    decoder: DecoderStack, sentences: int, tokens: int, keys: int, first: bool
) -> list[Work]:
    """Return the work of one call of the decoder at full depth.

    Args:
        sentences: present.
        tokens: positions that each sentence's hypotheses run in all.
        keys: positions that self-attention covers.
        first: whether cross-attention K/V are made in this call.
    """
    layer, depth = decoder.layer(1), len(decoder.layers)
    work = [Work("decoder", partial(layer.flops, keys), [tokens * depth] * sentences)]
    if first:
        work.append(Work("cross_kv", layer.cross_kv_flops, [depth] * sentences))
    return work
