"""What was really executed: the record that every reported saving comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Optional

from torch import Tensor

from ofa_exit.runtime.flops import Work


@dataclass
class DecoderStep:
    """One call of the decoder, over the last P of the L positions of N hypotheses.

    Attributes:
        tokens: prev_output_tokens, Long [N, L].
        sentence: Long [N], number of its sentence in the batch.
        layers_used: Long [N, P], layers that each token needed before it exited.
        layers_run: Long [N], layers that the row really went through, P positions each. A row rides
            along while a hypothesis of its sentence is active, and with its batch until leaving
            pays.
        kv_backfilled: Long [N], keys and values (of one position in one layer) filled for skipped
            layers.
        keys: positions that self-attention covered, those to come included.
        work, full_work: what was done, by sentence, and what full depth would have done.
        heads_run: Long [N], heads that the row really went through, P positions each.
        head_kv_backfilled: Long [N], as kv_backfilled, of heads that were not reached.
        drafted, accepted: Long [N], with drafts: how many were verified, and whether the newest
            token was one of an earlier call's. Then layers_run counts a layer for each position.
    """

    tokens: Tensor
    sentence: Tensor
    layers_used: Tensor
    layers_run: Tensor
    kv_backfilled: Tensor
    keys: int
    work: list[Work]
    full_work: list[Work]
    heads_run: Optional[Tensor] = None
    head_kv_backfilled: Optional[Tensor] = None
    drafted: Optional[Tensor] = None
    accepted: Optional[Tensor] = None

    def score_words(
        self,
        price: int,
        tokens: Sequence[int] | Tensor,
        by_head: Optional[Sequence[tuple[int, int]]] = None,
    ) -> None:
        """Record the scoring of words, which full depth does as well.

        Args:
            price: FLOPs per token.
            tokens: per sentence.
            by_head: (FLOPs per token, tokens) of each head, where heads score words of their own.
        """
        scored = Work("vocabulary", _constant(price), tokens)
        self.full_work.append(scored)
        if by_head is None:
            self.work.append(scored)
            return
        rest = [0] * (len(tokens) - 1)  # the price does not depend on the sentence
        self.work += [Work("vocabulary", _constant(own), [count, *rest]) for own, count in by_head]


def _constant(price: int) -> Callable[[int], int]:
    return lambda source: price


@dataclass
class ExitTrace:
    """Layers executed for one batch of S sentences.

    Attributes:
        image_layers, text_layers: Long [S]; a sample without an image has 0 image layers. An
            encoder that runs both modalities together reports the same number in both.
        source_tokens: Long [S], of image and text together, without padding.
        work, full_work: what the encoder did, and what full depth would have done. An image that
            several sentences share is there once. A text that they share is there for each, as if
            its pass had run for each: no exit saved it.
        steps: one entry per decoder call.
        text_layers_run: Long [U], layers that each of the U distinct texts really went through.
            They are 0 where the pass was kept from an earlier batch.
    """

    image_layers: Tensor
    text_layers: Tensor
    source_tokens: Tensor
    work: list[Work] = field(default_factory=list)
    full_work: list[Work] = field(default_factory=list)
    steps: list[DecoderStep] = field(default_factory=list)
    text_layers_run: Optional[Tensor] = None

    def depths(self, hypotheses: Sequence[Sequence[Sequence[int]]]) -> list[list[list[int]]]:
        """Return the decoder layers that every token of every sentence's hypotheses used.

        The layers after a token depend on the tokens before it, so each is looked up by its
        sentence and prefix.

        Args:
            hypotheses: for each sentence its hypotheses, each the generated tokens with eos and
                without the start symbol.

        Raises:
            KeyError: this batch did not produce a hypothesis.
        """
        used: dict[tuple[int, tuple[int, ...]], int] = {}
        for step in self.steps:
            first = step.tokens.size(1) - step.layers_used.size(1)
            rows = zip(step.tokens.tolist(), step.sentence.tolist(), step.layers_used.tolist())
            for tokens, sentence, layers in rows:
                for offset, depth in enumerate(layers):
                    used[sentence, tuple(tokens[1 : first + offset + 1])] = depth
        return [
            [
                [used[sentence, tuple(tokens[:t])] for t in range(len(tokens))]
                for tokens in (list(map(int, hypothesis)) for hypothesis in hyps)
            ]
            for sentence, hyps in enumerate(hypotheses)
        ]
