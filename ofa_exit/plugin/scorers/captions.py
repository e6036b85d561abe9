"""Scorer for ``--scoring coco_caption``. References are one text, ``first && second && …``."""

from dataclasses import dataclass, field

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.scoring import BaseScorer, register_scorer

from ofa_exit.data.formats import SEPARATOR
from ofa_exit.evaluation.metrics import java
from ofa_exit.evaluation.metrics.captions import TOKENIZERS, score_captions
from ofa_exit.evaluation.metrics.results import Scores

# fairseq prints a reference's unknown word as UNKNOWN. No prediction may equal it.
UNKNOWN, NO_WORD = "<<unk>>", "outofvocabularyreference"
TOKENIZER_CHOICES = ChoiceEnum(list(TOKENIZERS))
NOTHING = "nothing was scored: no sentence with a reference was generated"


@dataclass
class CocoCaptionConfig(FairseqDataclass):
    coco_tokenizer: TOKENIZER_CHOICES = field(  # type: ignore[valid-type]
        default="auto",
        metadata={
            "help": "tokenizer of the caption metrics: ptb = as the COCO caption server (needs "
            "Java), plain = a simple one without Java, METEOR and SPICE, auto = ptb if Java is "
            "installed, otherwise plain"
        },
    )


def split_references(ref: str, where: str) -> list[str]:
    """Split the references joined by ``&&``. Raise ValueError if there is none."""
    references = [part.strip() for part in ref.split(SEPARATOR)]
    references = [part.replace(UNKNOWN, NO_WORD) for part in references if part]
    if not references:
        raise ValueError(
            f"{where} has an empty reference: add references to the data file, or generate from "
            "another file"
        )
    return references


@register_scorer("coco_caption", dataclass=CocoCaptionConfig)
class CocoCaptionScorer(BaseScorer):
    """BLEU, METEOR, ROUGE-L, CIDEr and SPICE, ×100 (see ``evaluation.metrics.captions``)."""

    def __init__(self, cfg: CocoCaptionConfig) -> None:
        super().__init__(cfg)
        self._tokenizer = str(cfg.coco_tokenizer)
        self._scores: Scores | None = None
        if self._tokenizer == "ptb":
            java.find_java()  # raise before the generation, not after it

    def add_string(self, ref: str, pred: str) -> None:
        """Add a prediction and its references. Without references it is not scored."""
        if not ref.strip():
            return
        where = f"sentence {len(self.pred) + 1} of the generation"
        super().add_string(split_references(ref, where), pred)

    def score(self) -> float:
        """Return CIDEr ×100. Raise ValueError if nothing was added."""
        return self._computed().values["CIDEr"]

    def result_string(self) -> str:
        return self._computed().line() if self.pred else NOTHING

    def values(self) -> dict[str, float]:
        """Return every available metric by its usual name."""
        return dict(self._computed().values)

    def _computed(self) -> Scores:
        """Return the scores of all predictions, computed once because METEOR is slow."""
        if not self.pred:
            raise ValueError(NOTHING)
        if self._scores is None or self._scores.counted != len(self.pred):
            self._scores = score_captions(self.pred, self.ref, self._tokenizer)
        return self._scores
