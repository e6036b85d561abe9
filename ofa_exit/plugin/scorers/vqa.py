"""Scorers for `--scoring`: vqa_accuracy, vizwiz_accuracy, gqa_accuracy and visdial."""

import re
from collections.abc import Callable, Sequence

from fairseq.dataclass import FairseqDataclass
from fairseq.scoring import BaseScorer, register_scorer

from ofa_exit.evaluation.metrics.submission import ranks_of_order
from ofa_exit.evaluation.metrics.visdial import VisDialMetrics
from ofa_exit.evaluation.metrics.vqa import ten_answers
from ofa_exit.evaluation.metrics.vqa_answers import answer_accuracy, vizwiz_answer_accuracy
from ofa_exit.plugin.scorers.captions import NO_WORD, NOTHING, SEPARATOR, UNKNOWN

# OFA's files have an answer's confidence before it: 1.0|!+yes
_CONFIDENCE = re.compile(r"^[0-9.]+\|!\+")


def split_answers(ref: str) -> list[str]:
    """The answers joined by `&&`, empty ones too, without confidences."""
    parts = [_CONFIDENCE.sub("", part.strip(), count=1) for part in ref.split(SEPARATOR)]
    return [part.replace(UNKNOWN, NO_WORD) for part in parts]


class MeanScorer(BaseScorer):
    """Percentage that the values of the sentences come to, under the name ``accuracy``."""

    what: str

    def __init__(self, cfg: FairseqDataclass) -> None:
        super().__init__(cfg)
        self._total = 0.0
        self._sentences = 0

    def add_value(self, value: float) -> None:
        """One sentence's accuracy, 0 to 1."""
        self._total += value
        self._sentences += 1

    def next_sentence(self) -> str:
        """For errors."""
        return f"sentence {self._sentences + 1} of the generation"

    def score(self) -> float:
        """Accuracy in percent; ValueError if nothing was added."""
        if not self._sentences:
            raise ValueError(NOTHING)
        return 100 * self._total / self._sentences

    def values(self) -> dict[str, float]:
        """The score by its name."""
        return {"accuracy": self.score()}

    def result_string(self) -> str:
        if not self._sentences:
            return NOTHING
        return f"accuracy = {self.score():.2f} ({self.what} of {self._sentences} questions)"


@register_scorer("vqa_accuracy", dataclass=FairseqDataclass)
class VqaAccuracyScorer(MeanScorer):
    """VQA accuracy over the answers of ten annotators (see `evaluation.metrics.vqa_answers`).

    References are the ten answers joined by `&&`, as written, with or without OFA's confidences
    (which do not count) before them.
    """

    what = "VQA accuracy"
    accuracy: Callable[[str, Sequence[str]], float] = staticmethod(answer_accuracy)

    def add_string(self, ref: str, pred: str) -> None:
        """Raises ValueError where there are not ten answers."""
        answers = ten_answers(split_answers(ref), self.next_sentence())
        self.add_value(self.accuracy(pred, answers))


@register_scorer("vizwiz_accuracy", dataclass=FairseqDataclass)
class VizWizAccuracyScorer(VqaAccuracyScorer):
    """The same by VizWiz's evaluation, which processes predictions and never the answers."""

    what = "VizWiz accuracy"
    accuracy = staticmethod(vizwiz_answer_accuracy)


@register_scorer("gqa_accuracy", dataclass=FairseqDataclass)
class GqaAccuracyScorer(MeanScorer):
    """Percentage of predictions that equal the one answer letter for letter."""

    what = "GQA accuracy"

    def add_string(self, ref: str, pred: str) -> None:
        """Raises ValueError where there is not exactly one answer."""
        answers = split_answers(ref)
        if len(answers) != 1 or not answers[0]:
            raise ValueError(
                f"{self.next_sentence()} has the answers {answers}: a question of GQA has one"
            )
        self.add_value(pred.strip() == answers[0])


@register_scorer("visdial", dataclass=FairseqDataclass)
class VisDialScorer(BaseScorer):
    """NDCG, MRR, R@1, R@5, R@10 and mean rank (see `ofa_exit.evaluation.metrics.visdial`).

    The prediction is the candidates' numbers from 0, the best first, parted by spaces; the
    reference is the number of the true one, and, where the round is annotated for relevance,
    the candidates' relevances, all joined by `&&`: `42 && 0 && 0.5 && 1 …`.
    """

    def __init__(self, cfg: FairseqDataclass) -> None:
        super().__init__(cfg)
        self._metrics = VisDialMetrics()

    def add_string(self, ref: str, pred: str) -> None:
        """Raises ValueError for what is no ranking, true candidate or list of relevances."""
        where = f"sentence {len(self._metrics) + 1} of the generation"
        true_index, _, relevances = ref.partition(SEPARATOR)
        try:
            relevance = [float(value) for value in relevances.replace(SEPARATOR, " ").split()]
            parts = ranks_of_order(pred), int(true_index), relevance or None
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        self._metrics.add(*parts, where)

    def score(self) -> float:
        """NDCG where a round had relevances, else MRR; ValueError if nothing was added."""
        return next(iter(self.values().values()))

    def values(self) -> dict[str, float]:
        """Every metric by its usual name."""
        if not len(self._metrics):
            raise ValueError(NOTHING)
        return self._metrics.values()

    def result_string(self) -> str:
        return self._metrics.scores().line() if len(self._metrics) else NOTHING
