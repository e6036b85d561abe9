"""Scorers of answers: vqa, accuracy, vqa_accuracy, vizwiz_accuracy, gqa_accuracy and visdial."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fairseq.dataclass import FairseqDataclass
from fairseq.scoring import BaseScorer, register_scorer

from ofa_exit.data.answers import TEN, answer_form, reference_answers
from ofa_exit.data.formats import SEPARATOR
from ofa_exit.evaluation.metrics.accuracy import is_correct
from ofa_exit.evaluation.metrics.submission import ranks_of_order
from ofa_exit.evaluation.metrics.visdial import VisDialMetrics
from ofa_exit.evaluation.metrics.vqa import ten_answers
from ofa_exit.evaluation.metrics.vqa_answers import answer_accuracy, vizwiz_answer_accuracy
from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.scorers.captions import NO_WORD, NOTHING, UNKNOWN, split_references
from ofa_exit.plugin.scorers.measures import MEASURES, choose_measure


def split_pairs(ref: str) -> list[tuple[float, str]]:
    """Split the answers joined by ``&&``, also empty ones, into (confidence, answer).

    An answer without a confidence, as in references of ten annotators, has 1.0.
    """
    pairs = reference_answers(ref.split(SEPARATOR))
    return [(conf, text.strip().replace(UNKNOWN, NO_WORD)) for conf, text in pairs]


def split_answers(ref: str) -> list[str]:
    """Split the answers joined by ``&&``, also empty ones, and remove confidences."""
    return [text for _, text in split_pairs(ref)]


class MeanScorer(BaseScorer):
    """Mean of the sentences' values in percent, under the name ``accuracy``."""

    metric: str

    def __init__(self, cfg: FairseqDataclass) -> None:
        super().__init__(cfg)
        self._total = 0.0
        self._sentences = 0

    def add_value(self, value: float) -> None:
        """Add one sentence's accuracy, 0 to 1."""
        self._total += value
        self._sentences += 1

    def next_sentence(self) -> str:
        """Return the name of the next sentence, for errors."""
        return f"sentence {self._sentences + 1} of the generation"

    def score(self) -> float:
        """Return the accuracy in percent. Raise ValueError if nothing was added."""
        if not self._sentences:
            raise ValueError(NOTHING)
        return 100 * self._total / self._sentences

    def values(self) -> dict[str, float]:
        """Return the score by its name."""
        return {"accuracy": self.score()}

    def result_string(self) -> str:
        if not self._sentences:
            return NOTHING
        return f"accuracy = {self.score():.2f} ({self.counts()})"

    def counts(self) -> str:
        """Return what the accuracy is the mean of."""
        return f"{self.metric} of {self._sentences} questions"


@dataclass
class AccuracyConfig(FairseqDataclass):
    accuracy_ignore_case: bool = field(
        default=False, metadata={"help": "ignore upper and lower case of answers"}
    )


@register_scorer("accuracy", dataclass=AccuracyConfig)
class AccuracyScorer(MeanScorer):
    """Percentage of predictions equal to one of their references."""

    def add_string(self, ref: str, pred: str) -> None:
        """Add a prediction and its references. Without references it is not scored."""
        if not ref.strip():
            return
        references = split_references(ref, self.next_sentence())
        references = [text for _, text in reference_answers(references)]
        self.add_value(is_correct(pred, references, self.cfg.accuracy_ignore_case))

    def counts(self) -> str:
        return f"{self._total:.0f} of {self._sentences}"


@register_scorer("vqa", dataclass=FairseqDataclass)
class VqaScorer(BaseScorer):
    """The accuracy that fits the data (see ``measures``), and exact match beside OFA's score.

    Ten annotators' answers give VQA accuracy, one answer per question gives exact match, and
    distinct answers with a score (``1.0|!+yes && 0.6|!+no``) give OFA's score of the prediction.
    """

    def __init__(self, cfg: FairseqDataclass) -> None:
        super().__init__(cfg)
        self._forms: list[str] = []
        self._totals = dict.fromkeys(("vqa_accuracy", "exact_match", "ofa_score"), 0.0)

    def add_string(self, ref: str, pred: str) -> None:
        """Add a prediction. Raise ValueError for a row without answers, or of another form."""
        where = f"sentence {len(self._forms) + 1} of the generation"
        answers = split_pairs(ref) if ref.strip() else []
        form = answer_form(answers)
        if form is None:
            raise UsageError(f"{where} has no answer to score against: choose another split")
        names = ("vqa_accuracy",) if form == TEN else ("exact_match", "ofa_score")
        try:
            MEASURES[names[0]].check(answers)
            choose_measure([*self._forms[:1], form])
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from None
        self._forms.append(form)
        for name in names:
            self._totals[name] += MEASURES[name].value(pred, answers)

    def score(self) -> float:
        """Return the accuracy in percent. Raise ValueError if nothing was added."""
        return self.values()["accuracy"]

    def values(self) -> dict[str, float]:
        """Return the accuracy, and exact match where it is another one."""
        if not self._forms:
            raise ValueError(NOTHING)
        percent = {name: 100 * total / len(self._forms) for name, total in self._totals.items()}
        name = choose_measure(self._forms)
        values = {"accuracy": percent[name]}
        if name == "ofa_score":
            values["exact_match"] = percent["exact_match"]
        return values

    def result_string(self) -> str:
        if not self._forms:
            return NOTHING
        values, title = self.values(), MEASURES[choose_measure(self._forms)].title
        numbers = " ".join(f"{name} = {value:.2f}" for name, value in values.items())
        return f"{numbers} ({title} of {len(self._forms)} questions)"


@register_scorer("vqa_accuracy", dataclass=FairseqDataclass)
class VqaAccuracyScorer(MeanScorer):
    """VQA accuracy over the answers of ten annotators (see ``evaluation.metrics.vqa_answers``).

    References are the ten answers as written, joined by ``&&``. OFA's confidences are ignored.
    """

    metric = "VQA accuracy"
    accuracy: Callable[[str, Sequence[str]], float] = staticmethod(answer_accuracy)

    def add_string(self, ref: str, pred: str) -> None:
        """Add a prediction. Raise ValueError unless there are ten answers."""
        try:
            answers = ten_answers(split_answers(ref), self.next_sentence())
        except ValueError as error:
            raise UsageError(f"{error}. For other data choose --scoring vqa") from None
        self.add_value(self.accuracy(pred, answers))


@register_scorer("vizwiz_accuracy", dataclass=FairseqDataclass)
class VizWizAccuracyScorer(VqaAccuracyScorer):
    """The same as VizWiz evaluates it: predictions are normalised, answers are not."""

    metric = "VizWiz accuracy"
    accuracy = staticmethod(vizwiz_answer_accuracy)


@register_scorer("gqa_accuracy", dataclass=FairseqDataclass)
class GqaAccuracyScorer(MeanScorer):
    """Percentage of predictions that equal the answer exactly."""

    metric = "GQA accuracy"

    def add_string(self, ref: str, pred: str) -> None:
        """Add a prediction. Raise ValueError unless there is exactly one answer."""
        answers = split_answers(ref)
        if len(answers) != 1 or not answers[0]:
            raise ValueError(
                f"{self.next_sentence()} has the answers {answers}: in GQA each question has one"
            )
        self.add_value(pred.strip() == answers[0])


@register_scorer("visdial", dataclass=FairseqDataclass)
class VisDialScorer(BaseScorer):
    """NDCG, MRR, R@1, R@5, R@10 and mean rank (see ``evaluation.metrics.visdial``).

    The prediction is the candidates' numbers, from 0, best first, separated by spaces. The
    reference is the number of the true candidate and, if the round has relevance annotations, the
    candidates' relevances, joined by ``&&``: ``42 && 0 && 0.5 && 1 …``.
    """

    def __init__(self, cfg: FairseqDataclass) -> None:
        super().__init__(cfg)
        self._metrics = VisDialMetrics()

    def add_string(self, ref: str, pred: str) -> None:
        """Add a ranking. Raise ValueError if it or its reference is invalid."""
        where = f"sentence {len(self._metrics) + 1} of the generation"
        true_index, _, relevances = ref.partition(SEPARATOR)
        try:
            relevance = [float(value) for value in relevances.replace(SEPARATOR, " ").split()]
            parts = ranks_of_order(pred), int(true_index), relevance or None
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        self._metrics.add(*parts, where)

    def score(self) -> float:
        """Return NDCG if a round has relevances, otherwise MRR. Raise ValueError if empty."""
        return next(iter(self.values().values()))

    def values(self) -> dict[str, float]:
        """Return every metric by its usual name."""
        if not len(self._metrics):
            raise ValueError(NOTHING)
        return self._metrics.values()

    def result_string(self) -> str:
        return self._metrics.scores().line() if len(self._metrics) else NOTHING
