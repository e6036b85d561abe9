"""The tables of a comparison as a Markdown page."""

from collections.abc import Callable, Sequence

from tabulate import tabulate

from ofa_exit.evaluation.figures.compare import Comparison
from ofa_exit.evaluation.figures.methods import VALID
from ofa_exit.evaluation.figures.paper_numbers import TITLES, PaperRow, table_rows
from ofa_exit.evaluation.figures.selection import (
    KEPT,
    FullDepth,
    Keep,
    Result,
    in_words,
)

VARIANTS = {
    "plain": "joint encoder, loss on the last layer",
    "mue": "split encoder, loss on every layer",
    "no_split": "joint encoder, loss on every layer",
    "no_layer_loss": "split encoder, loss on the last layer",
}
"""Methods of the ablation (MuE Table 4), by the names of run_scripts."""

NOTES = """\
Numbers of a test split belong to settings that were chosen on validation. −10 % saves a tenth.
Expected time is MuE's Eq. 14. It and the FLOPs, counted per sentence, are against {baseline} at
full depth. Measured time is against the method's own full depth, or against the model of the
sweep's --reference, since only what is swept together meets the same machine. Speed-up is
BLIPEE's: the decoder's parameters over those used. It counts no parameters for linear heads.
Speed-up with heads does. Kept is the quality over that of {baseline} at full depth. Several seeds:
mean (lowest to highest)."""

Rows = list[list[str]]


def page(comparison: Comparison) -> str:
    """Return the page."""
    parts = [f"# {', '.join(method.name for method in comparison.methods)}"]
    parts.append(NOTES.format(baseline=comparison.baseline.name))
    for split in comparison.splits:
        parts += [f"## {split}", _rule_text(comparison), main_table(comparison, split)]
        parts += ["### Trade-off (MuE Table 3)", trade_off_table(comparison, split)]
        for title, table in (
            ("Ablation (MuE Table 4)", ablation_table(comparison, split)),
            ("Image and text layers (MuE Table 2)", corner_table(comparison, split)),
        ):
            if table:
                parts += [f"### {title}", table]
    if comparison.paper:
        parts += ["## The papers' numbers", paper_tables(comparison.paper)]
    return "\n\n".join(parts) + "\n"


def main_table(comparison: Comparison, split: str) -> str:
    """Return the main table, MuE's Tables 1 and 5 and BLIPEE's Tables 1 to 4."""
    results = comparison.main_results(split)
    quality = comparison.quality
    scores = _scores(comparison, split)
    has_counts = any(method.trained_parameters for method in comparison.methods)
    header = ["method", "setting", f"{quality} on valid", *scores, "kept", *LAYERS]
    header += ["trained"] * has_counts + _last_titles(comparison)
    rows: Rows = []
    for result in results:
        row = [f"{result.method}, {result.rule.label}", _setting(result), _numbers(result.valid)]
        row += [_cell(result, score, _one_digit) for score in scores]
        row += [_cell(result, KEPT, _percent)]
        row += [_cell(result, column, _two_digits) for column in LAYERS.values()]
        if has_counts:
            count = comparison.method(result.method).trained_parameters
            row.append("" if count is None else f"{count:,}")
        rows.append(row + _last_cells(comparison, result, comparison.printed(result)))
    return _markdown(header, rows, left=2)


def trade_off_table(comparison: Comparison, split: str) -> str:
    """Return each method's quality and savings under every budget, the best method in bold.

    Under a rule that keeps quality the best saves most. Under one that saves, it scores best.
    """
    quality = comparison.quality
    rows: Rows = []
    for rule in comparison.budgets:
        results = [comparison.result(method, rule, split) for method in comparison.methods]
        means = [result.mean(rule.by if isinstance(rule, Keep) else quality) for result in results]
        best = max((mean for mean in means if mean is not None), default=None)
        for result, mean in zip(results, means):
            is_best = mean is not None and mean == best
            row = [rule.label if result is results[0] else ""]
            row += [f"**{result.method}**" if is_best else result.method]
            row += [_cell(result, quality, _one_digit) if result.values else "none"]
            row += [_cell(result, KEPT, _percent)]
            rows.append(row + _last_cells(comparison, result, comparison.printed_trade_off(result)))
    return _markdown(["", "method", quality, "kept", *_last_titles(comparison)], rows, left=2)


def ablation_table(comparison: Comparison, split: str) -> str:
    """Return MuE's Table 4; empty without ``mue`` and one of its variants."""
    names = [method.name for method in comparison.methods if method.name in VARIANTS]
    if "mue" not in names or not {"no_split", "no_layer_loss"} & set(names):
        return ""
    quality = comparison.quality
    header = ["variant", "", f"{quality}, full depth", f"{quality}, exits", "kept"]
    header += _last_titles(comparison)
    rows: Rows = []
    for name in names:
        method = comparison.method(name)
        full = comparison.result(method, FullDepth(), split)
        exits = comparison.result(method, comparison.main_rule, split)
        row = [name, VARIANTS[name], _cell(full, quality, _one_digit)]
        row += [_cell(exits, quality, _one_digit) if exits.values else exits.remark]
        row += [_cell(exits, KEPT, _percent)]
        printed = table_rows(comparison.paper, "MuE, Table 4", name, split)
        rows.append(row + _last_cells(comparison, exits, printed))
    return _markdown(header, rows, left=2)


def corner_table(comparison: Comparison, split: str) -> str:
    """Return MuE's Table 2; empty if no sweep exits image and text separately."""
    results = comparison.corner_results(split)
    if not results:
        return ""
    scores = _scores(comparison, split)
    rows = [
        [
            result.method,
            *(_cell(result, LAYERS[name], _two_digits) for name in ("image", "text")),
            *(_cell(result, score, _one_digit) for score in scores),
            *_last_cells(comparison, result, comparison.printed(result)),
        ]
        for result in results
    ]
    header = ["method", "image", "text", *scores, *_last_titles(comparison)]
    return _markdown(header, rows, left=1)


def paper_tables(printed: Sequence[PaperRow]) -> str:
    """Return the printed rows, a table for each table and data set of the papers."""
    parts = []
    for source, data_set in dict.fromkeys((row.source, row.data_set) for row in printed):
        own = [row for row in printed if (row.source, row.data_set) == (source, data_set)]
        columns = list(dict.fromkeys(column for row in own for column in row.values))
        titles = [PAPER_TITLES.get(column, column) for column in columns]
        has_counts = any(row.trained_parameters for row in own)
        rows = [
            [
                row.row,
                row.split,
                *(_shown(column, row.values.get(column)) for column in columns),
                *([row.trained_parameters] if has_counts else []),
            ]
            for row in own
        ]
        header = ["row", "split", *titles, *(["trained"] if has_counts else [])]
        parts.append(f"{source}, {data_set}:\n\n{_markdown(header, rows, left=2)}")
    return "\n\n".join(parts)


# ------------------------------------------------------------------ cells


def _one_digit(value: float) -> str:
    return f"{value:.1f}"


def _two_digits(value: float) -> str:
    return f"{value:.2f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _reduction(value: float) -> str:
    """Show a saved share as a change: 0.4 is −40.0 %."""
    text = f"{-100 * value:+.1f} %".replace("-", "−")
    return "0.0 %" if text[1:] == "0.0 %" else text


def _speed_up(value: float) -> str:
    return f"{value:.2f}×"


Show = Callable[[float], str]
LAYERS = {part: f"{part}_layers" for part in ("image", "text", "decoder")}
SAVINGS: dict[str, tuple[str, Show]] = {
    "expected time": ("expected_time_reduction", _reduction),
    "without prompt": ("expected_time_reduction_without_prompt", _reduction),
    "FLOPs": ("flop_reduction", _reduction),
    "measured time": ("measured_time_reduction", _reduction),
    "speed-up": ("parameter_speedup", _speed_up),
    "speed-up with heads": ("parameter_speedup_with_heads", _speed_up),
}
SHOWS = dict(SAVINGS.values())
PAPER_TITLES = {column: title for title, (column, _) in SAVINGS.items()}


def _savings(comparison: Comparison) -> dict[str, tuple[str, Show]]:
    """Return the columns of savings that a sweep has: few have those with heads or a prompt."""
    sweeps = [sweep for method in comparison.methods for sweep in method.sweeps]
    found = {name for sweep in sweeps for values in sweep.settings.values() for name in values}
    return {title: (name, show) for title, (name, show) in SAVINGS.items() if name in found}


def _last_titles(comparison: Comparison) -> list[str]:
    """Return the titles of the columns that end every table: savings, and the papers' numbers."""
    return [*_savings(comparison), *["paper"] * bool(comparison.paper)]


def _last_cells(comparison: Comparison, result: Result, printed: Sequence[PaperRow]) -> list[str]:
    cells = [_cell(result, column, show) for column, show in _savings(comparison).values()]
    return cells + [_printed(printed, comparison.quality)] * bool(comparison.paper)


def _numbers(values: Sequence[float], show: Show = _one_digit) -> str:
    """Return the mean of the values, and their range if there are several."""
    if not values:
        return "–"
    mean = show(sum(values) / len(values))
    return mean if len(values) == 1 else f"{mean} ({show(min(values))} to {show(max(values))})"


def _cell(result: Result, column: str, show: Show) -> str:
    return _numbers(result.values.get(column, []), show)


def _setting(result: Result) -> str:
    if isinstance(result.rule, FullDepth):
        return ""
    if not result.values:
        return result.remark
    words = dict.fromkeys(in_words(setting) for setting in result.settings if setting)
    return "; ".join([*words, *([result.remark] if result.remark else [])])


def _printed(rows: Sequence[PaperRow], quality: str) -> str:
    """Return what the papers print, quality and savings, in one grey cell."""
    texts = []
    for row in rows:
        if quality in row.values:
            savings = [SHOWS[name](row.values[name]) for name in SHOWS if row.values.get(name)]
            text = " at ".join([f"{row.values[quality]:g}", *savings])
            texts.append(f"{text} ({TITLES[row.paper]})")
    return f'<span style="color:grey">{"; ".join(texts)}</span>' if texts else ""


def _shown(column: str, value: float | None) -> str:
    if value is None:
        return ""
    return SHOWS[column](value) if column in SHOWS else f"{value:g}"


def _scores(comparison: Comparison, split: str) -> list[str]:
    """Return the scores of a split, in the order of the first method's file, none twice."""
    sweeps = [seed[split] for method in comparison.methods for seed in method.seeds]
    return list(dict.fromkeys(score for sweep in sweeps for score in sweep.scores))


def _rule_text(comparison: Comparison) -> str:
    rule, baseline = comparison.main_rule, comparison.baseline
    wanted = rule.share * baseline.mean_at_full_depth(VALID, comparison.quality)
    saving = PAPER_TITLES.get(rule.by, rule.by)
    return (
        f"Each method at full depth, and with the setting that saves most ({saving}) among those "
        f"with at least {wanted:.1f} {comparison.quality} on validation, {100 * rule.share:g} % of "
        f"{baseline.name}."
    )


def _markdown(header: list[str], rows: Rows, left: int) -> str:
    align = ["left"] * left + ["right"] * (len(header) - left)
    return tabulate(rows, header, tablefmt="pipe", disable_numparse=True, colalign=align)
