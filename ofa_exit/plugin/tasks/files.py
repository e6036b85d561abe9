"""Find the files of a split."""

import os
import re
from pathlib import Path

# Names that their position in the list must not turn into training data.
_HELD_OUT = ("valid", "val", "dev", "test")


def is_training(split: str) -> bool:
    """Return whether a split is training data (train…): one target per row, shuffled."""
    return split.startswith("train")


def split_files(data: str | None, split: str, prefix: str) -> list[Path]:
    """Return the files of a split. Training data may be several; each epoch reads one.

    Args:
        data: as in OFA, files separated by commas: the last one for validation and generation, the
            others for training. Or a single file for anything but training. Or a folder with
            SPLIT.tsv or PREFIX_SPLIT.tsv, for training also numbered (train1.tsv, train2.tsv).

    Raises:
        ValueError: the file is missing. The message says what to give.
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
            f"{data} is a single file, for validation and generation: for training give "
            "train.tsv,valid.tsv or a folder"
        )
    for path in paths[:-1]:
        if path.stem in _HELD_OUT:
            raise ValueError(
                f"{data!r}: all files but the last are training data, and {path.name} does not "
                "look like it. Give train.tsv,valid.tsv, or a folder of all splits"
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
    found = sorted(path.name for path in folder.glob("*.tsv"))
    raise ValueError(
        f"{folder} holds no {split}.tsv and no {prefix}_{split}.tsv for the split {split!r}; "
        f"it holds {', '.join(found) or 'no TSV files'}"
    )


def first_folder(data: str | None) -> str:
    """Return the folder of the data, the default of ``--bpe-dir``."""
    first = Path((data or "").split(",")[0].strip())
    return os.fspath(first if first.is_dir() else first.parent)
