"""Find the files of a split."""

import os
import re
from pathlib import Path

# Names of held-out files, and the split that each of them is for.
_HELD_OUT = {"valid": "valid", "val": "valid", "dev": "valid", "test": "test"}


def is_training(split: str) -> bool:
    """Return whether a split is training data (train…): one target per row, shuffled."""
    return split.startswith("train")


def reject_no_data(data: object) -> None:
    """Raise ValueError if no file and no folder is given."""
    if not data:
        raise ValueError("no data: give TSV files (train.tsv,valid.tsv) or a folder of them")


def split_files(data: str | None, split: str, prefix: str) -> list[Path]:
    """Return the files of a split. Training data may be several; each epoch reads one.

    Args:
        data: as in OFA, files separated by commas: the last one for validation and generation, the
            others for training. Files called SPLIT.tsv or PREFIX_SPLIT.tsv at the end of the list
            (train.tsv,valid.tsv,test.tsv) are for that split only. Or a single file for anything
            but training. Or a folder with SPLIT.tsv or PREFIX_SPLIT.tsv, for training also numbered
            (train1.tsv, train2.tsv).

    Raises:
        ValueError: the file is missing, or is one of another split. The message says what to give.
    """
    paths = [Path(part.strip()) for part in (data or "").split(",") if part.strip()]
    reject_no_data(paths)
    if len(paths) == 1 and paths[0].is_dir():
        return _in_folder(paths[0], split, prefix)
    folders = [str(path) for path in paths if path.is_dir()]
    if folders:
        raise ValueError(f"{folders[0]} is a folder: give either one folder or files, {data!r}")
    if len(paths) == 1:
        if is_training(split):
            raise ValueError(
                f"{data} is a single file, for validation and generation: for training give "
                "train.tsv,valid.tsv or a folder"
            )
        return paths
    return _in_list(paths, split, prefix)


def _in_list(paths: list[Path], split: str, prefix: str) -> list[Path]:
    listed = ",".join(map(str, paths))
    held_out = [path for path in paths if _split_of(path, prefix)]
    training = [path for path in paths[:-1] if path not in held_out]
    # OFA's order: training data come first.
    if training != paths[: len(training)]:
        raise ValueError(
            f"{listed!r}: {held_out[0].name} stands before training data. Give train.tsv,valid.tsv "
            "or train.tsv,valid.tsv,test.tsv"
        )
    if is_training(split):
        if not training:
            raise ValueError(
                f"{listed!r}: no file is training data. Give train.tsv,valid.tsv or "
                "train.tsv,valid.tsv,test.tsv"
            )
        return training
    named = [path for path in held_out if split in (path.stem, _split_of(path, prefix))]
    if len(named) > 1:
        raise ValueError(
            f"{listed!r}: {named[0].name} and {named[1].name} are both for the split {split!r}. "
            "Leave one out"
        )
    if named:
        return named
    # The last file is for every held-out split, unless another file is named for one of them or
    # its own name says that generating `test` from it would score validation data.
    is_validation_data = _split_of(paths[-1], prefix) == "valid"
    if len(held_out) > 1 or (split.startswith("test") and is_validation_data):
        raise ValueError(
            f"{listed!r}: no file is called {split}.tsv or {prefix}_{split}.tsv for the split "
            f"{split!r}. Add it to the list, or choose another split"
        )
    return paths[-1:]


def _split_of(path: Path, prefix: str) -> str | None:
    """Return the held-out split that a file's name stands for, None for any other name."""
    return _HELD_OUT.get(path.stem.removeprefix(f"{prefix}_"))


def _in_folder(folder: Path, split: str, prefix: str) -> list[Path]:
    for name in (split, f"{prefix}_{split}"):
        if (folder / f"{name}.tsv").is_file():
            return [folder / f"{name}.tsv"]
        numbered = re.compile(re.escape(name) + r"(\d+)\.tsv")
        parts = [(m, path) for path in folder.iterdir() if (m := numbered.fullmatch(path.name))]
        if parts and is_training(split):
            return [path for _, path in sorted(parts, key=lambda part: int(part[0][1]))]
    found = sorted(path.name for path in folder.glob("*.tsv"))
    raise ValueError(
        f"{folder} holds no {split}.tsv and no {prefix}_{split}.tsv for the split {split!r}; "
        f"it holds {', '.join(found) or 'no TSV files'}"
    )


def first_folder(data: str | None) -> str:
    """Return the folder of the data, the default of ``--bpe-dir``."""
    first = Path((data or "").split(",")[0].strip())
    return os.fspath(first if first.is_dir() else first.parent)
