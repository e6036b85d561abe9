"""Scorers for `--scoring`: coco_caption and accuracy.

References come as one text, `first && second && …`.
"""

from dataclasses import dataclass, field

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.scoring import BaseScorer, register_scorer

from ofa_exit.evaluation.metrics import java
from ofa_exit.evaluation.metrics.accuracy import is_correct
from ofa_exit.evaluation.metrics.captions import TOKENIZERS, CaptionScores, score_captions

SEPARATOR = "&&"
# What fairseq makes of a reference's word that the dictionary lacks. No prediction may equal it.
UNKNOWN, NO_WORD = "<<unk>>", "outofvocabularyreference"
TOKENIZER_CHOICES = ChoiceEnum(list(TOKENIZERS))
NOTHING = "nothing was scored: no sentence with a reference came out of the generation"


@dataclass
class CocoCaptionConfig(FairseqDataclass):
    coco_tokenizer: TOKENIZER_CHOICES = field(  # type: ignore[valid-type]
        default="auto",
        metadata={
            "help": "words of the caption metrics: ptb = the PTB tokenizer of the COCO caption "
            "server (needs Java), plain = a simple one that starts no Java and leaves METEOR and "
            "SPICE out, auto = ptb where Java runs, otherwise plain"
        },
    )


@dataclass
class AccuracyConfig(FairseqDataclass):
    accuracy_ignore_case: bool = field(
        default=False,
        metadata={"help": "count an answer as right whatever its upper and lower case"},
    )


class ReferenceScorer(BaseScorer):
    """Collects predictions with one or more references each."""

    def add_string(self, ref: str, pred: str) -> None:
        """ref: the references joined by `&&`. Raises ValueError where there is none."""
        references = [part.strip() for part in ref.split(SEPARATOR)]
        references = [part.replace(UNKNOWN, NO_WORD) for part in references if part]
        if not references:
            raise ValueError(
                f"sentence {len(self.pred) + 1} of the generation has an empty reference: give the "
                "data file one in every row, or score with another file"
            )
        super().add_string(references, pred)


@register_scorer("coco_caption", dataclass=CocoCaptionConfig)
class CocoCaptionScorer(ReferenceScorer):
    """BLEU, METEOR, ROUGE-L, CIDEr and SPICE (see `evaluation.metrics.captions`), all ×100."""

    def __init__(self, cfg: CocoCaptionConfig) -> None:
        super().__init__(cfg)
        self._tokenizer = str(cfg.coco_tokenizer)
        self._scores: CaptionScores | None = None
        if self._tokenizer == "ptb":
            java.find_java()  # refuse before the generation rather than after it

    def score(self) -> float:
        """CIDEr ×100; ValueError if nothing was added."""
        return self._computed().values["CIDEr"]

    def result_string(self) -> str:
        return self._computed().line() if self.pred else NOTHING

    def values(self) -> dict[str, float]:
        """Every metric that could be had, by its usual name."""
        return dict(self._computed().values)

    def _computed(self) -> CaptionScores:
        """Scores of all that was added; METEOR takes long, so not computed twice."""
        if not self.pred:
            raise ValueError(NOTHING)
        if self._scores is None or self._scores.captions != len(self.pred):
            self._scores = score_captions(self.pred, self.ref, self._tokenizer)
        return self._scores


@register_scorer("accuracy", dataclass=AccuracyConfig)
class AccuracyScorer(ReferenceScorer):
    """Percentage of predictions that equal one of their references."""

    def _right(self) -> int:
        return sum(
            is_correct(prediction, references, self.cfg.accuracy_ignore_case)
            for prediction, references in zip(self.pred, self.ref)
        )

    def score(self) -> float:
        """Accuracy in percent; ValueError if nothing was added."""
        if not self.pred:
            raise ValueError(NOTHING)
        return 100 * self._right() / len(self.pred)

    def values(self) -> dict[str, float]:
        """The score by its name."""
        return {"accuracy": self.score()}

    def result_string(self) -> str:
        if not self.pred:
            return NOTHING
        return f"accuracy = {self.score():.2f} ({self._right()} of {len(self.pred)})"
