"""A sweep's settings: the grid file, and what is refused about it before a model is there."""

import contextlib
import difflib
import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Optional

from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.options import ExitFlags, build_exit_policy, reject_misfit_arguments
from ofa_exit.policies.base import ExitPolicy

Grid = list[dict[str, Any]]
EXAMPLE = '[{}, {"exit_image_threshold": 0.95, "exit_decoder_threshold": 0.9}]'
# Option of a setting -> its type; traces are of single generations.
OPTIONS = {
    field.name: field.type
    for field in fields(ExitFlags)
    if field.name.startswith("exit_") and field.name != "exit_trace"
}


@dataclass
class ExitSetting:
    """One line of a grid.

    where: what errors call it. given: its exit options; options: all of them, complete with the
    command line's.
    """

    where: str
    run: str
    given: dict[str, Any]
    options: Namespace
    policy: Optional[ExitPolicy]

    @property
    def kv(self) -> str:
        """How keys and values of skipped layers are made."""
        return self.options.exit_kv or "propagate"

    def reject_misfit(self, arguments: Any) -> None:
        """Raises UsageError where an OFA model of these arguments cannot follow the setting."""
        if self.policy is not None:
            with errors_of(self.where):
                reject_misfit_arguments(self.options, self.policy, arguments)


def read_grid(path: Path) -> Grid:
    """The settings in a JSON file, as they are. Raises UsageError where it holds no list of any."""
    try:
        grid = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error}): give a list, {EXAMPLE}") from error
    if not isinstance(grid, list) or not grid:
        raise UsageError(f"{path} holds no list of settings: give at least one, {EXAMPLE}")
    return grid


def exit_settings(
    grid: Sequence[Any], cfg: Any, task: str, where: str, run: str
) -> list[ExitSetting]:
    """The settings of a grid with their policies.

    cfg: the task's options, of which the exits' hold for every setting that has no others.
    where: what errors call the grid. run: name of the curve that settings without one belong to.
    Raises UsageError that names the setting, counted from 1, and what to give instead.
    """
    if not grid:
        raise UsageError(f"{where} is empty: give at least one setting")
    if cfg.exit_trace:
        raise UsageError("--exit-trace is of a single generation: leave it out of a sweep")
    settings = []
    for number, given in enumerate(grid, start=1):
        name = f"{where}, setting {number}"
        check_setting(given, name)
        exits = {option: value for option, value in given.items() if option != "run"}
        options = Namespace(**{**{o: getattr(cfg, o) for o in OPTIONS}, **exits}, exit_trace=None)
        if exits and "exit_policy" not in exits:
            options.exit_policy = "similarity"
        with errors_of(name):
            policy = build_exit_policy(options, task)
        settings.append(ExitSetting(name, given.get("run", run), exits, options, policy))
    return settings


def check_setting(given: Any, where: str) -> None:
    """Raises UsageError for what is no object of known options with values of their types."""
    if not isinstance(given, dict):
        raise UsageError(f"{where} is {_shown(given)}: give an object of exit options, or {{}}")
    for option, value in given.items():
        if option == "run":
            _check_type(option, value, str, where)
            continue
        if option not in OPTIONS:
            near = difflib.get_close_matches(option, [*OPTIONS, "run"], n=1)
            meant = f": is {near[0]} meant? Options" if near else ": options"
            raise UsageError(
                f"{where}: {option!r} is no exit option of fairseq-generate{meant} are run, "
                f"{', '.join(OPTIONS)}"
            )
        if value is not None or OPTIONS[option] is str:
            _check_type(option, value, OPTIONS[option], where)


def _check_type(option: str, value: Any, kind: Any, where: str) -> None:
    if kind in (float, Optional[float]):
        sound, wanted = isinstance(value, (int, float)) and not isinstance(value, bool), "a number"
    else:
        sound, wanted = isinstance(value, str), "a text in quotes"
        if option == "exit_depths":
            wanted += ', "IMAGE,TEXT,DECODER"'
        elif option == "exit_options":
            wanted += ', a JSON object in it: "{\\"layers\\": [1, 3]}"'
    if not sound:
        raise UsageError(f"{where}: {option} is {_shown(value)}, give {wanted}")


def _shown(value: Any) -> str:
    """A value as JSON has it, no longer than a line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:40] + "…"


@contextlib.contextmanager
def errors_of(where: str) -> Iterator[None]:
    """ValueError from within become UsageError headed by the setting they are of."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error
