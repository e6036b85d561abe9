"""A sweep's settings: reading the grid file and checking it before a model is loaded."""

import contextlib
import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from fairseq import utils

from ofa_exit.plugin.calibrated import reject_other_fit
from ofa_exit.plugin.drafts import is_lossless
from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.exit_config import reject_foreign_policy
from ofa_exit.plugin.image_tokens import build_token_exits
from ofa_exit.plugin.options import (
    COMMON,
    build_exit_policy,
    option_fields,
    policy_flags,
    reject_misfit_arguments,
)
from ofa_exit.plugin.saved_arguments import resolved
from ofa_exit.policies.base import ExitPolicy, Origin
from ofa_exit.policies.registry import POLICIES
from ofa_exit.regular_files import regular_file
from ofa_exit.runtime.token_exits import TokenExits
from ofa_exit.spelling import nearest

Grid = list[dict[str, Any]]
EXAMPLE = '[{}, {"exit_image_threshold": 0.95, "exit_decoder_threshold": 0.9}]'


@dataclass
class ExitSetting:
    """One entry of a grid.

    Attributes:
        where: the entry's name in errors.
        run: name of the curve that it belongs to.
        given: its own exit options.
        options: all exit options, including those of the command line.
        policy: None = full depth.
    """

    where: str
    run: str
    given: dict[str, Any]
    options: Namespace
    policy: Optional[ExitPolicy]

    @property
    def kv(self) -> str:
        """Return how the K/V cache of skipped layers is filled."""
        return self.options.exit_kv or "propagate"

    @property
    def token_exits(self) -> Optional[TokenExits]:
        """Return how image tokens exit one by one."""
        return build_token_exits(self.options)

    def check_arguments(self, arguments: Any) -> None:
        """Raise UsageError if an OFA model of these arguments cannot follow the setting."""
        if self.policy is not None or self.token_exits is not None:
            with errors_name(self.where):
                reject_misfit_arguments(self.options, self.policy, arguments)


def read_grid(path: Path) -> Grid:
    """Return the settings in a JSON file, unchecked.

    Raises:
        UsageError: the file holds no list of settings.
    """
    try:
        grid = json.loads(regular_file(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON ({error}): give a list, {EXAMPLE}") from error
    if not isinstance(grid, list) or not grid:
        raise UsageError(f"{path} holds no list of settings: give at least one, {EXAMPLE}")
    return grid


def exit_settings(
    grid: Sequence[Any], cfg: Any, task: str, where: str, run: str
) -> list[ExitSetting]:
    """Return the settings of a grid with their policies.

    Args:
        cfg: the task's options; its exit options hold for every setting without its own.
        where: the grid's name in errors.
        run: curve of the settings without a ``run``.
    Raises:
        UsageError: names the setting, counted from 1, and the remedy.
    """
    if not grid:
        raise UsageError(f"{where} is empty: give at least one setting")
    if cfg.exit_trace:
        raise UsageError("--exit-trace belongs to a single generation: leave it out of a sweep")
    if is_lossless(cfg):
        raise UsageError(
            "--exit-lossless changes no output, so there is nothing to sweep: leave it out, and "
            "read speed and acceptance in the report of fairseq-generate"
        )
    settings = []
    for number, given in enumerate(grid, start=1):
        name = f"{where}, setting {number}"
        check_setting(given, name)
        exits = {option: value for option, value in given.items() if option != "run"}
        usual = {option: getattr(cfg, option, None) for option in known_options()}
        if exits:  # a setting of its own
            usual["exit_config"] = None
        late = getattr(cfg, "exit_late_options", None)
        options = Namespace(**{**usual, **exits}, exit_late_options=late, exit_trace=None)
        is_named = options.exit_policy != "none" or exits.keys() & {"exit_policy", "exit_config"}
        if exits.keys() - {"exit_image_tokens"} and not is_named:
            options.exit_policy = _policy_of(exits)
        with errors_name(name):
            policy = build_exit_policy(options, task)
            if policy is not None and policy.origin is not None:
                _take_origin(policy.origin, options, cfg)
        settings.append(ExitSetting(name, given.get("run", run), exits, options, policy))
    return settings


def _take_origin(origin: Origin, options: Namespace, cfg: Any) -> None:
    """Reject a policy that was fitted on another checkpoint; keep with the options which fit it is.

    What resumes compares the options, and a file may have been fitted again under its name.
    """
    path = resolved(getattr(cfg, "path", None))
    if path:
        reject_foreign_policy(origin, utils.split_paths(path), None)
        reject_other_fit(options.exit_config, origin)
    options.fitted = origin.digest


def check_setting(given: Any, where: str) -> None:
    """Raise UsageError unless ``given`` is an object of known options with valid types."""
    if not isinstance(given, dict):
        raise UsageError(f"{where} is {_shown(given)}: give an object of exit options, or {{}}")
    for option, value in given.items():
        if option == "run":
            _check_text(option, value, where)
            continue
        known = known_options()
        if option not in known:
            near = nearest(option, [*known, "run"])
            hint = f"did you mean {near}? Options" if near else "options"
            raise UsageError(
                f"{where}: {option!r} is not an exit option of fairseq-generate: {hint} are run, "
                f"{', '.join(known)}"
            )
        is_number = option == "exit_image_tokens"  # or a list, or a text
        if option == "exit_policy" or (option in COMMON and value is not None and not is_number):
            _check_text(option, value, where)


def known_options() -> list[str]:
    """Return the options that a setting may give: the policies' own are checked by them."""
    return [*COMMON, *policy_flags()]


def _policy_of(exits: dict[str, Any]) -> str:
    """Return the first registered policy that takes these options."""
    given = {option for option in exits if option not in COMMON}
    takers = (name for name in POLICIES if given <= set(option_fields(name).values()))
    return next(takers, next(iter(POLICIES)))


def _check_text(option: str, value: Any, where: str) -> None:
    if not isinstance(value, str):
        wanted = ', a JSON object in it: "{\\"alpha\\": 0.9}"' if option == "exit_options" else ""
        raise UsageError(f"{where}: {option} is {_shown(value)}, give a text in quotes{wanted}")


def _shown(value: Any) -> str:
    """Return a value as JSON, cut to 40 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:40] + "…"


@contextlib.contextmanager
def errors_name(where: str) -> Iterator[None]:
    """Turn a ValueError from within into a UsageError that starts with the setting's name."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error
