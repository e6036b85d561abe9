"""What is predicted for an image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

from ofa_exit.evaluation.figures.cases import Answer, Word


@dataclass(frozen=True)
class Prediction:
    """The best caption or answer for an image.

    Attributes:
        image: path of the image, or "image N" for the N-th of a list.
        source: the question or hypothesis, as it was given; empty for captions.
        text: caption or answer.
        score: log-probability: of captions per token, of answers summed.
        words: the text by tokens, each with the decoder layers it used. The last one has no text:
            it ends the sentence.
        image_layers, text_layers: encoder layers used. An encoder that runs both together reports
            the same number twice.
        seconds: the image's share of the time that its batch took to generate.
        error: why the image could not be read; all else is empty then.
        exits: name of the exit policy, "none" without one.
        depth: decoder layers of the model.
    """

    image: str
    source: str = ""
    text: str = ""
    score: float = math.nan
    words: Sequence[Word] = ()
    image_layers: int = 0
    text_layers: int = 0
    seconds: float = 0.0
    error: Optional[str] = None
    exits: str = "none"
    depth: int = 0

    @property
    def layers(self) -> list[int]:
        """Return the decoder layers that each token used, the end of the sentence included."""
        return [word.layer for word in self.words]

    def answer(self) -> Answer:
        """Return the prediction as a row of the page of cases."""
        method = "full depth" if self.exits == "none" else self.exits
        return Answer(method, self.words, self.image_layers, self.text_layers)

    def as_dict(self) -> dict[str, Any]:
        """Return the prediction as values for JSON. An image that could not be read has none."""
        if self.error is not None:
            return {"image": self.image, "source": self.source, "error": self.error}
        return {
            "image": self.image,
            "source": self.source,
            "text": self.text,
            "score": self.score,
            "words": [word.text.strip() for word in self.words],
            "layers": self.layers,
            "image_layers": self.image_layers,
            "text_layers": self.text_layers,
            "milliseconds": round(1000 * self.seconds, 3),
        }
