"""What was really executed: the record that every reported saving comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

from torch import Tensor


class DecoderStep(NamedTuple):
    """One call of the decoder, over the last P of the L positions of N hypotheses.

    tokens: prev_output_tokens, Long [N, L]. sentence: Long [N], place of its sentence in the batch.
    layers: Long [N, P], layers that each token needed before it left.
    ran: Long [N], layers that the row really went through, P positions each. A row rides along
        while a hypothesis of its sentence is active, and with its batch until leaving pays.
    repaid: Long [N], keys and values (of one position in one layer) made up for skipped layers.
    asked: Long [N], positions whose words were scored.
    exits: Long [N], exits that the row really went through, P positions each, scoring words.
    exits_repaid: Long [N], keys and values (of one position in one exit) made up for exits that
        were not reached. Both None where there are no exits.
    keys: positions that self-attention ran over, those to come included; None = L.
    """

    tokens: Tensor
    sentence: Tensor
    layers: Tensor
    ran: Tensor
    repaid: Tensor
    asked: Tensor
    exits: Optional[Tensor] = None
    exits_repaid: Optional[Tensor] = None
    keys: Optional[int] = None


@dataclass
class ExitTrace:
    """Layers executed for one batch of S sentences.

    image_layers, text_layers: Long [S]; a sample without an image has 0 image layers. An encoder
        that runs both modalities together reports the same number in both.
    steps: one entry a decoder call.
    image_rows: Long [S], which image each sentence has, where sentences share them; None = its own.
    """

    image_layers: Tensor
    text_layers: Tensor
    steps: list[DecoderStep] = field(default_factory=list)
    image_rows: Optional[Tensor] = None

    def depths(self, hypotheses: Sequence[Sequence[Sequence[int]]]) -> list[list[list[int]]]:
        """Decoder layers that every token of every sentence's hypotheses needed.

        hypotheses: for each sentence its hypotheses, each the generated tokens with eos and
            without the start symbol. The layers behind a token are a function of the tokens before
            it, so each is looked up by its sentence and prefix.

        Raises KeyError for a hypothesis that this batch did not produce.
        """
        seen: dict[tuple[int, tuple[int, ...]], int] = {}
        for step in self.steps:
            first = step.tokens.size(1) - step.layers.size(1)
            rows = zip(step.tokens.tolist(), step.sentence.tolist(), step.layers.tolist())
            for row, which, used in rows:
                for offset, depth in enumerate(used):
                    seen[which, tuple(row[1 : first + offset + 1])] = depth
        return [
            [
                [seen[which, tuple(tokens[:t])] for t in range(len(tokens))]
                for tokens in (list(map(int, hypothesis)) for hypothesis in of_sentence)
            ]
            for which, of_sentence in enumerate(hypotheses)
        ]
