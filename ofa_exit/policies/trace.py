"""What was really executed: the record that every reported saving comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class ExitTrace:
    """Layers executed for one batch of S sentences.

    image_layers, text_layers: Long [S]; a sample without an image has 0 image layers. An encoder
        that runs both modalities together reports the same number in both.
    steps: one entry a decoder call: (prev_output_tokens [N, L], sentence [N], layers [N, P]) for N
        hypotheses; ``layers`` belongs to the last P of the L positions.
    """

    image_layers: Tensor
    text_layers: Tensor
    steps: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def depths(self, hypotheses: Sequence[Sequence[Sequence[int]]]) -> list[list[list[int]]]:
        """Decoder layers behind every token of every sentence's hypotheses.

        hypotheses: for each sentence its hypotheses, each the generated tokens with eos and
            without the start symbol. The layers behind a token are a function of the tokens before
            it, so each is looked up by its sentence and prefix.

        Raises KeyError for a hypothesis that this batch did not produce.
        """
        seen: dict[tuple[int, tuple[int, ...]], int] = {}
        for tokens, sentence, layers in self.steps:
            first = tokens.size(1) - layers.size(1)
            for row, which, used in zip(tokens.tolist(), sentence.tolist(), layers.tolist()):
                for offset, depth in enumerate(used):
                    seen[which, tuple(row[1 : first + offset + 1])] = depth
        return [
            [
                [seen[which, tuple(tokens[:t])] for t in range(len(tokens))]
                for tokens in (list(map(int, hypothesis)) for hypothesis in of_sentence)
            ]
            for which, of_sentence in enumerate(hypotheses)
        ]
