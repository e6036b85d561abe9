"""Which file a split is read from."""

import os
import re
from pathlib import Path

# Names that would be taken for training data by their place in the list alone.
_HELD_OUT = ("valid", "val", "dev", "test")


def is_training(split: str) -> bool:
    """Splits named train… are training data: one target a row, shuffled."""
    return split.startswith("train")


def split_files(data: str | None, split: str, prefix: str) -> list[Path]:
    """The files of a split; training data may be several, of which each epoch reads one.

    data: as in OFA, files separated by commas, the last for validation and generation, those
    before it for training; one file alone for anything but training; or a folder that holds
    SPLIT.tsv or PREFIX_SPLIT.tsv, and for training also numbered parts (train1.tsv, train2.tsv).
    Raises ValueError, with what to give, where no file can be told.
    """
    paths = [Path(part.strip()) for part in (data or "").split(",") if part.strip()]
    if not paths:
        raise ValueError("no data: give TSV files (train.tsv,valid.tsv) or a folder of them")
    if len(paths) == 1 and paths[0].is_dir():
        return _in_folder(paths[0], split, prefix)
    folders = [str(path) for path in paths if path.is_dir()]
    if folders:
        raise ValueError(f"{folders[0]} is a folder: give either one folder or files, {data!r}")
    if not is_training(split):
        return [paths[-1]]
    if len(paths) == 1:
        raise ValueError(
            f"{data} is one file, of which validation and generation read: for training give "
            "train.tsv,valid.tsv or a folder"
        )
    for path in paths[:-1]:
        if path.stem in _HELD_OUT:
            raise ValueError(
                f"{data!r}: all files but the last are trained on, {path.name} does not look so. "
                "Give train.tsv,valid.tsv, or a folder that holds all splits"
            )
    return paths[:-1]


def _in_folder(folder: Path, split: str, prefix: str) -> list[Path]:
    for name in (split, f"{prefix}_{split}"):
        if (folder / f"{name}.tsv").is_file():
            return [folder / f"{name}.tsv"]
        numbered = re.compile(re.escape(name) + r"(\d+)\.tsv")
        parts = [(m, path) for path in folder.iterdir() if (m := numbered.fullmatch(path.name))]
        if parts and is_training(split):
            return [path for _, path in sorted(parts, key=lambda part: int(part[0][1]))]
    there = sorted(path.name for path in folder.glob("*.tsv"))
    raise ValueError(
        f"{folder} holds no {split}.tsv and no {prefix}_{split}.tsv for the split {split!r}; "
        f"there are: {', '.join(there) or 'no TSV files'}"
    )


def first_folder(data: str | None) -> str:
    """The folder of the data, where the dictionary is looked for without ``--bpe-dir``."""
    first = Path((data or "").split(",")[0].strip())
    return os.fspath(first if first.is_dir() else first.parent)
