"""Scorer for ``--scoring coco_caption``. References are one text, ``first && second && …``."""

import logging
from dataclasses import dataclass, field, replace
from typing import Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.scoring import BaseScorer, register_scorer

from ofa_exit.data.formats import SEPARATOR
from ofa_exit.evaluation.metrics import java
from ofa_exit.evaluation.metrics.captions import TOKENIZERS, score_captions
from ofa_exit.evaluation.metrics.results import Scores
from ofa_exit.evaluation.metrics.spice import find_models
from ofa_exit.plugin.errors import UsageError

logger = logging.getLogger(__name__)

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
    spice_jars: Optional[str] = field(
        default=None,
        metadata={
            "help": "folder of SPICE's language models, stanford-corenlp-3.6.0.jar and "
            "stanford-corenlp-3.6.0-models.jar (default: pycocoevalcap's own folder)"
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


def check_spice(jars: str, tokenizer: str) -> None:
    """Raise UsageError if SPICE cannot be computed by the models in the folder ``jars``."""
    if tokenizer == "plain":
        raise UsageError("--spice-jars: SPICE needs the tokenizer of Java: --coco-tokenizer ptb")
    try:
        find_models(jars)
        java.find_java()
    except java.JavaError as error:
        raise UsageError(f"--spice-jars {jars}: {error}") from error


@register_scorer("coco_caption", dataclass=CocoCaptionConfig)
class CocoCaptionScorer(BaseScorer):
    """BLEU, METEOR, ROUGE-L, CIDEr and SPICE, ×100 (see ``evaluation.metrics.captions``)."""

    def __init__(self, cfg: CocoCaptionConfig) -> None:
        super().__init__(cfg)
        self._tokenizer = str(cfg.coco_tokenizer)
        self._scores: Scores | None = None
        self._logged: set[str] = set()
        # Raise before the generation, not after it.
        if self._tokenizer == "ptb":
            java.find_java()
        if cfg.spice_jars is not None:
            check_spice(cfg.spice_jars, self._tokenizer)

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
        """Return the metrics and the tokenizer on one line; log once why others are missing."""
        if not self.pred:
            return NOTHING
        scores = self._computed()
        tokenizer, *missing = scores.notes
        for note in missing:
            if note not in self._logged:
                logger.warning(note)
        self._logged.update(missing)
        return replace(scores, notes=[tokenizer]).line()

    def values(self) -> dict[str, float]:
        """Return every available metric by its usual name."""
        return dict(self._computed().values)

    def _computed(self) -> Scores:
        """Return the scores of all predictions, computed once because METEOR is slow."""
        if not self.pred:
            raise ValueError(NOTHING)
        if self._scores is None or self._scores.counted != len(self.pred):
            self._scores = score_captions(self.pred, self.ref, self._tokenizer, self.cfg.spice_jars)
        return self._scores
