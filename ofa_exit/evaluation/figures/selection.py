"""Rules that choose a setting on validation, and what the setting reaches on a test split."""

import re
import shlex
from dataclasses import dataclass
from typing import Protocol

from ofa_exit.evaluation.figures.methods import VALID, Method, Sweep, Values

EXPECTED = "expected_time_reduction"
KEPT = "kept"
"""Column of a result: its quality over the baseline's at full depth."""
PAIRS = r" (?=exit_\w+=)"
"""Between two options in a sweep's name of a setting. A value may have spaces."""


class Rule(Protocol):
    """Chooses a setting of a validation sweep."""

    @property
    def label(self) -> str:
        """What the rule asks for, after the method's name."""

    def choose(self, sweep: Sweep, quality: str, baseline: float) -> str | None:
        """Return the setting; None if none qualifies. ``baseline``: its quality at full depth."""


@dataclass(frozen=True)
class FullDepth:
    """No exits."""

    label = "full depth"

    def choose(self, sweep: Sweep, quality: str, baseline: float) -> str | None:
        return sweep.full_depth


@dataclass(frozen=True)
class Keep:
    """Save most, in the column ``by``, among what keeps a share of the baseline's quality."""

    share: float
    by: str = EXPECTED

    @property
    def label(self) -> str:
        return f"keeps {100 * self.share:g} %"

    def choose(self, sweep: Sweep, quality: str, baseline: float) -> str | None:
        settings = sweep.settings
        good = [
            name
            for name, values in settings.items()
            if values[quality] >= self.share * baseline and self.by in values
        ]
        return max(good, key=lambda name: settings[name][self.by], default=None)


@dataclass(frozen=True)
class Save:
    """Take the best quality among what saves at least this share of the expected time."""

    share: float

    @property
    def label(self) -> str:
        return f"saves {100 * self.share:g} %"

    def choose(self, sweep: Sweep, quality: str, baseline: float) -> str | None:
        settings = sweep.settings
        cheap = [name for name, values in settings.items() if values.get(EXPECTED, 0) >= self.share]
        return max(cheap, key=lambda name: settings[name][quality], default=None)


@dataclass(frozen=True)
class Corner:
    """Image and text pass, each in full or exited early, with the decoder in full (MuE Table 2).

    With both early it takes the setting that saves most. With one early, the setting in which that
    pass runs most nearly as many layers as there.
    """

    early_image: bool
    early_text: bool

    label = "decoder in full"

    def choose(self, sweep: Sweep, quality: str, baseline: float) -> str | None:
        if not (self.early_image or self.early_text):
            return sweep.full_depth
        both = [name for name in sweep.settings if corner_of(sweep.settings[name]) == (True, True)]
        own = (self.early_image, self.early_text)
        fitting = [name for name in sweep.settings if corner_of(sweep.settings[name]) == own]
        deepest = _saves_most(sweep, both or fitting)
        if deepest is None:
            return None
        parts = [name for name, early in zip(("image_layers", "text_layers"), own) if early]

        def distance(name: str) -> float:
            values, wanted = sweep.settings[name], sweep.settings[deepest]
            return sum(abs(values[part] - wanted[part]) for part in parts)

        return min(fitting, key=distance, default=None)


CORNERS = (Corner(False, False), Corner(True, True), Corner(True, False), Corner(False, True))
"""In the order of MuE's Table 2."""


def corner_of(values: Values) -> tuple[bool, bool] | None:
    """Return whether image and text exit early; None if the decoder does, or one is missing."""
    layers = [values.get(f"{part}_layers") for part in ("image", "text", "decoder")]
    image, text, decoder = layers
    if image is None or text is None or decoder != values["decoder_layers_full"]:
        return None
    return image < values["encoder_layers_full"], text < values["encoder_layers_full"]


def _saves_most(sweep: Sweep, names: list[str]) -> str | None:
    return max(names, key=lambda name: sweep.settings[name][EXPECTED], default=None)


@dataclass(frozen=True)
class Result:
    """A method under a rule on a test split.

    Attributes:
        settings: of each seed; None where no setting qualified.
        values: numbers by column, one per seed; empty if no seed has a setting that qualifies.
        valid: the quality on validation, one per seed.
    """

    method: str
    rule: Rule
    split: str
    settings: list[str | None]
    values: dict[str, list[float]]
    valid: list[float]

    @property
    def remark(self) -> str:
        """What has to be said about seeds in which no setting qualified."""
        failed = self.settings.count(None)
        if not failed:
            return ""
        if failed == len(self.settings):
            return f"no setting {self.rule.label}"
        return f"no setting {self.rule.label} in {failed} of {len(self.settings)} seeds: full depth"

    def mean(self, column: str) -> float | None:
        """Return the mean over seeds; None if the column is empty."""
        found = self.values.get(column)
        return sum(found) / len(found) if found else None


def evaluate(method: Method, rule: Rule, split: str, quality: str, baseline: Method) -> Result:
    """Choose a setting of every seed on validation and read it on ``split``.

    A seed in which no setting qualifies counts at full depth, unless none qualifies in any seed.
    """
    wanted = baseline.mean_at_full_depth(VALID, quality)
    reference = baseline.mean_at_full_depth(split, quality)
    chosen = [rule.choose(seed[VALID], quality, wanted) for seed in method.seeds]
    if not any(chosen):
        return Result(method.name, rule, split, list(chosen), {}, [])
    rows, valid = [], []
    for seed, setting in zip(method.seeds, chosen):
        name = setting or seed[VALID].full_depth
        values = seed[split].values(name)
        rows.append({KEPT: values[quality] / (reference or float("nan")), **values})
        valid.append(seed[VALID].values(name)[quality])
    columns = [name for name in rows[0] if all(name in row for row in rows)]
    by_column = {name: [row[name] for row in rows] for name in columns}
    return Result(method.name, rule, split, list(chosen), by_column, valid)


def in_words(setting: str) -> str:
    """Return a sweep's name of a setting in words: ``image 0.9, text never, schedule static``.

    A threshold of 1 or more never exits.
    """
    words = []
    for pair in re.split(PAIRS, setting):
        name, found, value = pair.removeprefix("exit_").partition("=")
        short = name.removesuffix("_threshold")
        if short != name and _at_least_one(value):
            value = "never"
        words.append(f"{short.replace('_', ' ')} {value}" if found else pair)
    return ", ".join(words)


def generation_options(setting: str) -> list[str]:
    """Return the options of fairseq-generate for a sweep's name of a setting; none at full depth.

    A setting without a policy is one of ``similarity``, as in ``ofa-exit sweep``.
    """
    pairs = [pair for pair in re.split(PAIRS, setting) if pair.startswith("exit_") and "=" in pair]
    if pairs and not any(pair.startswith("exit_policy=") for pair in pairs):
        pairs.insert(0, "exit_policy=similarity")
    options = (pair.partition("=") for pair in pairs)
    return [shlex.quote(f"--{name.replace('_', '-')}={value}") for name, _, value in options]


def _at_least_one(value: str) -> bool:
    try:
        return float(value) >= 1
    except ValueError:  # a list, one threshold per layer
        return False
