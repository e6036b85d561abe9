"""A comparison of methods: results of every rule, written as CSV and as Markdown."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ofa_exit.evaluation.figures.methods import VALID, Method, Sweep
from ofa_exit.evaluation.figures.paper_numbers import PaperRow, main_rows, table_rows
from ofa_exit.evaluation.figures.selection import (
    CORNERS,
    EXPECTED,
    Corner,
    FullDepth,
    Keep,
    Result,
    Rule,
    Save,
    corner_of,
    evaluate,
    generation_options,
)

STATIC = ("plain", "tiny", "medium")
"""Methods of the papers without exits: their printed numbers stand beside the full depth."""
MUE_ENCODER_LAYERS = 6
"""Those of image and text pass in MuE's tables, which are of OFA base."""


@dataclass(frozen=True)
class Comparison:
    """What is compared, and by which rules.

    Attributes:
        methods: in the order of the tables, with savings against ``baseline`` at full depth.
        keep: shares of the baseline's validation quality; the first is the main table's.
        by: column of the savings that the main rule maximises.
        save: shares of the expected time.
        paper: the papers' numbers of the same data set; none = not shown.
    """

    methods: Sequence[Method]
    baseline: Method
    quality: str
    keep: Sequence[float]
    by: str = EXPECTED
    save: Sequence[float] = ()
    paper: list[PaperRow] = field(default_factory=list)

    @property
    def splits(self) -> list[str]:
        """The test splits."""
        return [split for split in self.baseline.splits if split != VALID]

    @property
    def main_rule(self) -> Keep:
        return Keep(self.keep[0], self.by)

    @property
    def budgets(self) -> list[Rule]:
        """The rules of the trade-off, MuE's Table 3."""
        return [*(Keep(share, self.by) for share in self.keep), *map(Save, self.save)]

    def result(self, method: Method, rule: Rule, split: str) -> Result:
        return evaluate(method, rule, split, self.quality, self.baseline)

    def main_results(self, split: str) -> list[Result]:
        """Return two results of every method: at full depth, and by the main rule."""
        rules = FullDepth(), self.main_rule
        return [self.result(method, rule, split) for method in self.methods for rule in rules]

    def corner_results(self, split: str) -> list[Result]:
        """Return MuE's Table 2: methods whose sweeps exit image and text separately."""
        return [
            result
            for method in self.methods
            if has_corners(method)
            for result in (self.result(method, corner, split) for corner in CORNERS)
            if result.values
        ]

    def printed(self, result: Result) -> list[PaperRow]:
        """Return the papers' rows beside one of the main table or of MuE's Table 2; else []."""
        rule = result.rule
        if isinstance(rule, Corner):
            rows = table_rows(self.paper, "MuE, Table 2", result.method, result.split)
            return [row for row in rows if _printed_corner(row) == rule]
        if rule != (FullDepth() if result.method in STATIC else self.main_rule):
            return []
        return main_rows(self.paper, result.method, result.split)

    def printed_trade_off(self, result: Result) -> list[PaperRow]:
        """Return the row of MuE's Table 3 that the same rule chooses there; [] for none."""

        def printed(name: str) -> list[PaperRow]:
            rows = table_rows(self.paper, "MuE, Table 3", name, result.split)
            return [row for row in rows if self.quality in row.values]

        baseline, own = printed("plain"), printed(result.method)
        if not baseline or not own:
            return []
        sweep = Sweep(Path(), [], {str(place): row.values for place, row in enumerate(own)})
        chosen = result.rule.choose(sweep, self.quality, baseline[0].values[self.quality])
        return [] if chosen is None else [own[int(chosen)]]

    def method(self, name: str) -> Method:
        return next(method for method in self.methods if method.name == name)


def option_lines(comparison: Comparison) -> list[str]:
    """Return for every training what the main rule chose: ``mue@1 --exit-policy=… …``.

    The options are those of fairseq-generate. There are none where no setting qualified.
    """
    lines = []
    for method in comparison.methods:
        result = comparison.result(method, comparison.main_rule, comparison.splits[0])
        for seed, setting in zip(method.seed_names, result.settings):
            name = f"{method.name}@{seed}" if seed else method.name
            lines.append(" ".join([name, *generation_options(setting or "")]))
    return lines


def has_corners(method: Method) -> bool:
    """Return whether one pass of the encoder exits early in a setting while the other runs."""
    settings = method.seeds[0][VALID].settings.values()
    return any(corner_of(values) in ((True, False), (False, True)) for values in settings)


def _printed_corner(row: PaperRow) -> Corner:
    """Return which passes exit early in a row of MuE's Table 2."""
    image, text = (row.values[f"{part}_layers"] < MUE_ENCODER_LAYERS for part in ("image", "text"))
    return Corner(image, text)


def csv_lines(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a line for every method, rule and test split.

    Columns of numbers hold means over seeds. With several seeds NAME_low and NAME_high follow.
    Of several seeds, the names in ``seeds`` and what each chose, in ``setting``, have one order
    and are joined by " | ".
    """
    lines = []
    for split in comparison.splits:
        results = comparison.main_results(split)
        results += [
            comparison.result(method, rule, split)
            for rule in comparison.budgets[1:]
            for method in comparison.methods
        ]
        results += comparison.corner_results(split)
        lines += [_csv_line(comparison, result) for result in results]
    return lines


def _csv_line(comparison: Comparison, result: Result) -> dict[str, Any]:
    rule, method = result.rule, comparison.method(result.method)
    line: dict[str, Any] = {
        "method": result.method,
        "split": result.split,
        "rule": rule.label,
        "by": rule.by if isinstance(rule, Keep) else "",
        "seeds": " | ".join(method.seed_names),
        "setting": " | ".join(setting or "none" for setting in result.settings),
        "remark": result.remark,
    }
    numbers = {f"{VALID}_{comparison.quality}": result.valid, **result.values}
    for column, values in numbers.items():
        if values:
            line[column] = sum(values) / len(values)
            if len(values) > 1:
                line[f"{column}_low"], line[f"{column}_high"] = min(values), max(values)
    line["trained_parameters"] = method.trained_parameters
    for row in comparison.printed(result):
        line.update({f"paper_{row.paper}_{name}": value for name, value in row.values.items()})
    return line


def write_csv(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Write lines of different columns, numbers with six digits."""
    columns = list(dict.fromkeys(column for line in lines for column in line))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for line in lines:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()})
