"""Checks of a finished build, read back from its files."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ofa_exit.data.files import sha256_of

from .errors import EmojiDataError
from .hypotheses import LABELS
from .packages import ARTWORK, read_json
from .splits import SPLITS, TEST_ARTIST
from .tables import CAPTION_COLUMNS, ENTAILMENT_COLUMNS, SEPARATOR, count_words

FAMILY = {one.name: one.family for one in ARTWORK}
COLUMNS = {"caption": CAPTION_COLUMNS, "entailment": ENTAILMENT_COLUMNS}


def read_rows(path: Path) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a build's TSV file; reject a row with a wrong number of fields."""
    columns = COLUMNS[path.stem.split("_")[0]]
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                fields = tuple(line.rstrip("\n").split("\t"))
                if len(fields) != len(columns):
                    raise EmojiDataError(
                        f"{path}:{number}: {len(fields)} fields, expected {', '.join(columns)}. "
                        "Build again."
                    )
                yield fields
    except FileNotFoundError as error:
        raise EmojiDataError(
            f"{path} is missing. Make it with `python -m examples.emoji.builder build`."
        ) from error


def check_build(folder: Path) -> dict[str, int]:
    """Verify a build against its manifest and the rules of its splits; return rows per file.

    Checked: checksums and row counts, unique ids, no empty field, known labels, pictures of the
    stated size, words in the dictionary, no emoji by a family in two splits, held-out artist and
    held-out combinations unseen in training and validation.
    """
    manifest = read_json(folder / "manifest.json")
    for name, facts in manifest["files"].items():
        if not (folder / name).is_file() or sha256_of(folder / name) != facts["sha256"]:
            raise EmojiDataError(f"{folder / name} is missing or was changed. Build again.")
    known = {line.rsplit(" ", 1)[0] for line in (folder / "dict.txt").open(encoding="utf-8")}
    rows = {}
    for task in COLUMNS:
        shown: dict[str, set[str]] = {}
        for split in tqdm(SPLITS, desc=f"check {task}", unit="file"):
            path = folder / f"{task}_{split}.tsv"
            table = list(read_rows(path))
            _check_table(path, task, table, manifest["pixels"])
            unknown = set(count_words(*(([table], []) if task == "caption" else ([], [table]))))
            if unknown - known:
                raise EmojiDataError(f"{path}: not in dict.txt: {sorted(unknown - known)[:5]}")
            rows[path.name] = len(table)
            shown[split] = {row[1] for row in table}
            if len(table) != manifest["files"][path.name]["rows"]:
                raise EmojiDataError(f"{path}: {len(table)} rows, which the manifest contradicts")
        check_leaks(shown)
    return rows


def _check_table(path: Path, task: str, table: list[tuple[str, ...]], pixels: int) -> None:
    ids: set[str] = set()
    decoded: set[str] = set()
    columns = COLUMNS[task]
    for number, fields in enumerate(table, 1):
        where = f"{path}:{number}"
        row = dict(zip(columns, fields, strict=True))
        if row["uniq-id"] in ids:
            raise EmojiDataError(f"{where}: uniq-id {row['uniq-id']} occurs twice")
        ids.add(row["uniq-id"])
        if not all(part.strip() for field in fields for part in field.split(SEPARATOR)):
            raise EmojiDataError(f"{where}: an empty field or caption")
        if task == "entailment" and row["label"] not in LABELS:
            raise EmojiDataError(f"{where}: unknown label {row['label']!r}")
        if row["image"] in decoded:
            continue
        try:
            content = base64.b64decode(row["image"], altchars=b"-_", validate=True)
            drawing = Image.open(io.BytesIO(content))
            drawing.load()
        except (OSError, binascii.Error) as error:
            raise EmojiDataError(f"{where}: the image does not decode ({error})") from error
        if drawing.size != (pixels, pixels):
            raise EmojiDataError(f"{where}: image of {drawing.size}, expected {pixels} pixels")
        decoded.add(row["image"])


def check_leaks(shown: dict[str, set[str]]) -> None:
    """Reject splits whose image ids (`artist/emoji`) break the rules of the splits."""
    parts = {name: [tuple(one.split("/")) for one in ids] for name, ids in shown.items()}
    owner: dict[tuple[str, str], str] = {}
    for name in SPLITS:
        for artist, emoji in parts[name]:
            if owner.setdefault((FAMILY[artist], emoji), name) != name:
                raise EmojiDataError(f"{emoji} by {FAMILY[artist]} is in {name} and another split")
            if (name == "test_artist") != (artist == TEST_ARTIST):
                raise EmojiDataError(f"{name} holds {artist}/{emoji}")
    combinations = {emoji for _, emoji in parts["test_combinations"]}
    for name in ("train", "valid", "test_artist"):
        leaked = combinations & {emoji for _, emoji in parts[name]}
        if leaked:
            raise EmojiDataError(f"held-out combinations in {name}: {sorted(leaked)[:3]}")
