"""How options are spelled, and the nearest known name of an unknown one. Imports nothing slow."""

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import Optional

LEAST_LIKENESS = 0.75  # of 1, as difflib measures it: all options share their two dashes


def flag(name: str) -> str:
    """Return the flag of an option: ``exit_kv`` -> ``--exit-kv``."""
    return "--" + name.replace("_", "-")


def nearest(name: str, known: Iterable[str]) -> Optional[str]:
    """Return the known name that is spelled most like ``name``; None if none is like it."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=LEAST_LIKENESS)
    return near[0] if near else None


def unknown_option(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> Optional[str]:
    """Return an error that names the first option ``parser`` does not know; None without one.

    Abbreviations that ``parser`` accepts are known. Of commands with sub-commands, the options of
    the one that ``arguments`` name count, too.
    """
    if {"-h", "--help"} & set(arguments):
        return None  # the help lists all options
    parsers = [parser, *_sub_parsers(parser, arguments)]
    options = {option for one in parsers for option in one._option_string_actions}
    known = sorted(option for option in options if option.startswith("--"))
    for argument in arguments:
        if argument == "--":  # positional arguments follow
            return None
        option = argument.partition("=")[0]
        if not option.startswith("--") or " " in option or option in known:
            continue
        if parser.allow_abbrev and any(one.startswith(option) for one in known):
            continue
        near = nearest(option, known)
        hint = f"did you mean {near}?" if near else f"{parsers[-1].prog} --help lists all options"
        return f"unknown option {option}: {hint}"
    return None


def _sub_parsers(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> list[argparse.ArgumentParser]:
    """Return the parser of the sub-command that ``arguments`` name, if there is one."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            named = [argument for argument in arguments if argument in action.choices]
            return [action.choices[name] for name in named[:1]]
    return []
