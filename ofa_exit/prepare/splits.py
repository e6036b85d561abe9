"""Which splits of a release can be prepared: those whose annotation files are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .images import Files
from .job import say
from .records import PrepareError

# Part of a release (questions, answers, …) to the names its file may have, see Files.annotation.
Wanted = Mapping[str, tuple[str, ...]]


def available(
    splits: Mapping[str, Wanted], chosen: Sequence[str] | None, files: Files
) -> Iterator[tuple[str, dict[str, Path]]]:
    """(split, its files by part) of the splits ``chosen``; None: of all that are there.

    Raises PrepareError: a file of a chosen split is missing, or nothing is there at all.
    """
    some = False
    for split in chosen or splits:
        found = {part: files.annotation(*names) for part, names in splits[split].items()}
        missing = [splits[split][part][0] for part, path in found.items() if path is None]
        if not missing:
            some = True
            yield split, {part: path for part, path in found.items() if path is not None}
        elif chosen:
            raise PrepareError(f"{split} needs {', '.join(missing)} below {_below(files)}. {_SEE}")
        else:
            say(f"{split}: left out, for there is no {', '.join(missing)}")
    if not some:
        raise PrepareError(f"nothing to prepare below {_below(files)}. {_SEE}")


def candidate_sources(path: Path, wanted: Wanted, files: Files) -> tuple[Path, ...]:
    """The annotation files for the candidate answers of ``path`` that are there.

    Says which are not: the list is another one then than the usual of training and validation.
    """
    found = {part: files.annotation(*names) for part, names in wanted.items()}
    absent = [wanted[part][0] for part, source in found.items() if source is None]
    if absent:
        say(
            f"warning: {path}: there is no {', '.join(absent)}; the candidates come from the other "
            "answers alone and are not the usual ones"
        )
    return tuple(source for source in found.values() if source is not None)


_SEE = "See --help for where to get it and how to lay it out"


def _below(files: Files) -> str:
    return ", ".join(map(str, files.folders))
