"""The sweeps of several methods, read from a folder of CSV files."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ofa_exit.evaluation.figures.choice import read_settings
from ofa_exit.evaluation.figures.csv_rows import number
from ofa_exit.evaluation.figures.families import in_order
from ofa_exit.regular_files import regular_file

VALID, TEST = "valid", "test"
NUMBERS = (
    *("image_layers", "text_layers", "decoder_layers"),
    *("encoder_layers_full", "decoder_layers_full"),
    *("expected_time_reduction", "flop_reduction", "measured_time_reduction"),
    "expected_time_reduction_without_prompt",
    *("parameter_speedup", "parameter_speedup_with_heads"),
    *("gflops_per_sentence", "gflops_full_per_sentence"),
)
"""Columns of a sweep that may be empty. The scores are those between `setting` and `sentences`."""
REFERENCE_LAYERS = "reference_layers"
"""Column of a sweep with --reference-layers, such as 6+6: those that its expected time counts."""
PARAMETERS = "trained_parameters.txt"
PREFERRED_QUALITY = "CIDEr"

logger = logging.getLogger(__name__)

Values = dict[str, float]
"""Numbers of a setting by column, without the empty ones."""


@dataclass(frozen=True)
class Sweep:
    """The settings of one checkpoint on one split; the first runs at full depth."""

    path: Path
    scores: list[str]
    settings: dict[str, Values]

    @property
    def full_depth(self) -> str:
        """The name of the first setting."""
        return next(iter(self.settings))

    def values(self, setting: str) -> Values:
        """Return the numbers of a setting. Raises ValueError if it was not swept."""
        if setting not in self.settings:
            raise ValueError(
                f"{self.path} has no line for the chosen setting: {setting}. Sweep the same grid "
                "on every split"
            )
        return self.settings[setting]


@dataclass(frozen=True)
class Method:
    """A method with the sweeps of its seeds.

    Attributes:
        seeds: for each seed its sweeps by split.
        seed_names: what follows ``@`` in the seeds' folders; empty for a folder without it.
        trained_parameters: as the folder says; None if it does not.
    """

    name: str
    seeds: list[dict[str, Sweep]]
    seed_names: list[str]
    trained_parameters: int | None = None

    @property
    def splits(self) -> list[str]:
        """Names of the splits, validation first."""
        return list(self.seeds[0])

    @property
    def sweeps(self) -> list[Sweep]:
        """Those of all seeds and splits."""
        return [sweep for seed in self.seeds for sweep in seed.values()]

    def mean_at_full_depth(self, split: str, column: str) -> float:
        """Return the mean over seeds of a column at full depth."""
        sweeps = [seed[split] for seed in self.seeds]
        return sum(sweep.values(sweep.full_depth)[column] for sweep in sweeps) / len(sweeps)


def read_sweep(path: Path) -> Sweep:
    """Return the sweep in a CSV file. Raises ValueError with file, line and remedy."""
    rows = read_settings(path)
    columns = list(next(iter(rows.values())))
    missing = [name for name in ("sentences", "expected_time_reduction") if name not in columns]
    if missing:
        raise ValueError(
            f"{path}, line 1: no column {', '.join(missing)}. Give a CSV file of ofa-exit sweep"
        )
    scores = columns[columns.index("setting") + 1 : columns.index("sentences")]
    wanted = [name for name in (*scores, *NUMBERS) if name in columns]
    settings = {name: _values(row, wanted, f"{path}, {name}") for name, row in rows.items()}
    first = next(iter(settings))
    saved = settings[first].get("expected_time_reduction", 0.0)
    if abs(saved - _saved_at_full_depth(settings[first])) > 1e-6:
        raise ValueError(
            f"{path}, line 2: the first setting saves time ({first}). Begin the grid with {{}}, "
            "full depth"
        )
    return Sweep(path, scores, settings)


def layers_counted(values: Values) -> tuple[float, float]:
    """Return N_E and N_D of a sweep's expected time: the model's, or those of its reference."""
    kind = "reference" if "encoder_layers_reference" in values else "full"
    return values[f"encoder_layers_{kind}"], values[f"decoder_layers_{kind}"]


def _values(row: dict[str, str], columns: Sequence[str], where: str) -> Values:
    values = {name: number(row[name], name, where) for name in columns if row[name]}
    parts = (row.get(REFERENCE_LAYERS) or "").split("+")
    if len(parts) == 2:
        for name, part in zip(("encoder", "decoder"), parts):
            values[f"{name}_layers_reference"] = number(part, REFERENCE_LAYERS, where)
    return values


def _saved_at_full_depth(values: Values) -> float:
    """Return the expected time saved without exits: a smaller model saves against its reference."""
    if "encoder_layers_reference" not in values:
        return 0.0
    encoder, decoder = layers_counted(values)
    return (
        1 - (values["encoder_layers_full"] / encoder + values["decoder_layers_full"] / decoder) / 2
    )


def read_methods(folder: Path, names: Sequence[str] = ()) -> list[Method]:
    """Return the methods in the subfolders of ``folder``; NAME@SEED is a seed of NAME.

    Folders that lack a split are left out with a warning: their sweeps are not finished.

    Args:
        names: those to read, in this order; none = all that have CSV files, by family.

    Raises:
        ValueError: a folder is missing, nothing is left of a method of ``names`` or of all, or the
            files do not belong together.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give the one that holds a folder per method")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and _csv_files(path):
            found.setdefault(path.name.partition("@")[0], []).append(path)
    finished = _finished({name: found.get(name, []) for name in names or in_order(list(found))})
    if seeds := [name for name in names if "@" in name]:
        raise ValueError(
            f"{seeds[0]}: name the method without its seed, {seeds[0].partition('@')[0]}"
        )
    if missing := [name for name in names if name not in finished]:
        raise ValueError(
            f"{folder / missing[0]} has no finished sweeps. There are folders of "
            f"{', '.join(found) or 'no method'}"
        )
    if not finished:
        raise ValueError(
            f"{folder} has no METHOD with {VALID}.csv and {TEST}.csv: write the sweeps there"
        )
    methods = [_read_method(name, folders) for name, folders in finished.items()]
    for method in methods[1:]:
        _check_splits(methods[0].seeds[0], method.seeds[0])
    return methods


def check_quality(methods: Sequence[Method], quality: str | None) -> str:
    """Return the quality column, by default CIDEr or the first score.

    Raises ValueError if a sweep lacks it.
    """
    sweeps = [sweep for method in methods for sweep in method.sweeps]
    scores = sweeps[0].scores
    if quality is None:
        if not scores:
            raise ValueError(f"{sweeps[0].path} has no scores: sweep without --time-only")
        quality = PREFERRED_QUALITY if PREFERRED_QUALITY in scores else scores[0]
    for sweep in sweeps:
        if quality not in sweep.scores:
            raise ValueError(
                f"{sweep.path}, line 1: no column {quality} among its scores, "
                f"{', '.join(sweep.scores) or 'none'}. Name one of these"
            )
        for setting, values in sweep.settings.items():
            if quality not in values:
                raise ValueError(f"{sweep.path}, {setting}: column {quality} is empty. Sweep again")
    return quality


def _csv_files(folder: Path) -> list[Path]:
    """Return valid.csv and test*.csv, without the partial files of unfinished sweeps."""
    files = [folder / f"{VALID}.csv", *sorted(folder.glob(f"{TEST}*.csv"))]
    return [file for file in files if file.is_file() and ".partial" not in file.suffixes]


def _finished(found: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """Return the methods' folders that have all splits, and warn about the others.

    All splits are those of the folder with most of them, at least validation and test.
    """
    folders = [path for paths in found.values() for path in paths]
    own = {path: {file.stem for file in _csv_files(path)} for path in folders}
    splits = {VALID, *max([*own.values(), {VALID, TEST}], key=len)}
    finished: dict[str, list[Path]] = {}
    for name, paths in found.items():
        for path in paths:
            # Other splits than elsewhere are an error, which _check_splits raises.
            if VALID in own[path] and not own[path] < splits:
                finished.setdefault(name, []).append(path)
                continue
            lacks = ", ".join(f"{split}.csv" for split in sorted(splits - own[path]))
            logger.warning("%s lacks %s and is left out. Finish its sweeps", path, lacks)
    return finished


def _read_method(name: str, folders: list[Path]) -> Method:
    seeds = [{file.stem: read_sweep(file) for file in _csv_files(folder)} for folder in folders]
    for seed in seeds[1:]:
        _check_splits(seeds[0], seed)
        for split, sweep in seed.items():
            _check_settings(seeds[0][split], sweep)
    file = folders[0] / PARAMETERS
    seed_names = [folder.name.partition("@")[2] for folder in folders]
    return Method(name, seeds, seed_names, _count(file) if file.exists() else None)


def _check_splits(first: dict[str, Sweep], other: dict[str, Sweep]) -> None:
    """Raise ValueError if two methods or seeds were not swept on the same splits."""
    if first.keys() != other.keys():
        one, two = (next(iter(sweeps.values())).path.parent for sweeps in (first, other))
        raise ValueError(
            f"{two} has sweeps of {', '.join(other)}, but {one} of {', '.join(first)}. Sweep the "
            "same splits"
        )


def _check_settings(first: Sweep, other: Sweep) -> None:
    """Raise ValueError if two seeds were not swept over the same settings."""
    differing = sorted(first.settings.keys() ^ other.settings.keys())
    if differing:
        raise ValueError(
            f"{other.path} and {first.path} do not have the same settings, for instance "
            f"{differing[0]}. Sweep one grid for all seeds"
        )


def _count(file: Path) -> int:
    text = regular_file(file).read_text(encoding="utf-8").strip()
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{file}: {text!r} is not a number of parameters. Write digits alone")
    return int(text)
