"""The splits of a release that can be prepared: those with all annotation files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .images import Files
from .job import log
from .records import PrepareError

# Part of a release (questions, answers, …) → possible names of its file, see Files.annotation.
Wanted = Mapping[str, tuple[str, ...]]


def available(
    splits: Mapping[str, Wanted], chosen: Sequence[str] | None, files: Files
) -> Iterator[tuple[str, dict[str, Path]]]:
    """Yield (split, its files by part) of the ``chosen`` splits; None: of all that are complete.

    Raises PrepareError: a file of a chosen split is missing, or no split is complete.
    """
    found_any = False
    for split in chosen or splits:
        found = {part: files.annotation(*names) for part, names in splits[split].items()}
        missing = [splits[split][part][0] for part, path in found.items() if path is None]
        if not missing:
            found_any = True
            yield split, {part: path for part, path in found.items() if path is not None}
        elif chosen:
            raise PrepareError(f"{split} needs {', '.join(missing)} below {_below(files)}. {_SEE}")
        else:
            log(f"{split}: left out, {', '.join(missing)} is missing")
    if not found_any:
        raise PrepareError(f"nothing to prepare below {_below(files)}. {_SEE}")


_SEE = "See --help for the downloads and their layout"


def _below(files: Files) -> str:
    return ", ".join(map(str, files.folders))
