"""Filter samples: keep for every image the captions most similar to it, as a caption TSV."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from PIL.Image import Image
from tqdm import tqdm

from ofa_exit.data.caption import COLUMNS
from ofa_exit.data.files import write_bytes
from ofa_exit.data.formats import CAPTION_COLS, SEPARATOR
from ofa_exit.data.images import ImageError, decode_image
from ofa_exit.data.tsv import TsvError, TsvFile
from ofa_exit.prepare.capfilt.rankers import Ranker, similarities
from ofa_exit.prepare.capfilt.samples import Paths, distinct, read_samples, survey
from ofa_exit.regular_files import regular_file


@dataclass
class Counts:
    """What happened to the samples and to their rows."""

    rows: int = 0  # of the generation, read so far
    same_image: int = 0  # rows whose image an earlier row has
    broken: int = 0  # rows with an unreadable image
    images: int = 0  # with at least one caption kept
    fewer: int = 0  # of these, images with fewer captions than wanted
    none: int = 0  # images without any caption left
    samples: int = 0
    empty: int = 0
    duplicates: int = 0
    kept: int = 0
    similarity_kept: float = 0.0  # sums
    similarity_dropped: float = 0.0

    def text(self, keep: int) -> str:
        """Return the counts in words."""
        dropped = self.samples - self.empty - self.duplicates - self.kept
        lines = [
            f"{self.images} images with {self.kept} captions of {self.samples} samples",
            f"  {self.empty} empty, {self.duplicates} duplicates, {dropped} ranked below the best "
            f"{keep}",
            f"  {self.fewer} images with fewer than {keep}, {self.none} with none",
        ]
        if self.same_image:
            lines.append(f"  {self.same_image} rows left out: an earlier row has their image")
        if self.broken:
            lines.append(f"  {self.broken} rows left out: their image cannot be read")
        if self.kept:
            lines.append(f"  mean similarity kept {self.similarity_kept / self.kept:.3f}")
        if dropped:
            lines[-1] += f", dropped {self.similarity_dropped / dropped:.3f}"
        return "\n".join(lines)


@dataclass
class Candidates:
    """A row of the source with the captions to rank."""

    fields: list[str]
    image: Image
    captions: list[str]


@dataclass
class Output:
    """OUT.partial, and its progress in OUT.partial.json, until it is renamed to OUT."""

    path: Path
    inputs: dict[str, Any]
    counts: Counts = field(default_factory=Counts)
    size: int = 0

    def __post_init__(self) -> None:
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.state = self.path.with_name(self.path.name + ".partial.json")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            state = json.loads(regular_file(self.state).read_text(encoding="utf-8"))
            resumes = (
                state["inputs"] == self.inputs and self.partial.stat().st_size >= state["size"]
            )
        except (OSError, ValueError, LookupError):
            resumes = False
        if resumes:
            self.counts, self.size = Counts(**state["counts"]), state["size"]
        if self.partial.exists():
            regular_file(self.partial)
        self.file = self.partial.open("r+b" if resumes else "wb")
        self.file.truncate(self.size)  # drop rows written after the last note of progress
        self.file.seek(self.size)

    def write(self, lines: list[str]) -> None:
        """Write rows, then note the progress."""
        self.size += self.file.write("".join(lines).encode("utf-8"))
        self.file.flush()
        os.fsync(self.file.fileno())
        state = {"inputs": self.inputs, "counts": asdict(self.counts), "size": self.size}
        write_bytes(self.state, json.dumps(state).encode("utf-8"))

    def publish(self) -> None:
        self.file.close()
        os.replace(self.partial, self.path)
        self.state.unlink()


def filter_captions(
    ranker: Ranker,
    generated: Paths,
    tsv: str | os.PathLike[str],
    out: Path,
    *,
    keep: int = 2,
    selected_cols: str = CAPTION_COLS,
    image_id_column: int = 1,
    allow_missing: bool = False,
    skip_bad_rows: bool = False,
    batch_size: int = 32,
    options: dict[str, Any] | None = None,
) -> Counts:
    """Write the rows of ``tsv`` with new captions to ``out``: ``keep`` rows per image, best first.

    BLIPEE Section 3.4 samples 10 captions per image and keeps 2 by CLIP. The rows have the order of
    the generation. All columns stay, except the caption and the identifier (ID#1, ID#2). An image
    gets its captions once, however many rows show it. ``out`` is written atomically. A killed run
    leaves OUT.partial and resumes if called with the same files, numbers and options. Memory holds
    one batch of images.

    Args:
        options: what else distinguishes runs, such as the name of the ranker.
    Raises:
        ValueError: as ``samples.survey``; or no caption is left.
        TsvError: a row has no readable image, unless ``skip_bad_rows``.
    """
    if keep < 1 or batch_size < 1:
        raise ValueError(f"{keep} captions per image, batch size {batch_size}: give at least 1")
    file = TsvFile(tsv, selected_cols, COLUMNS)
    if not 0 <= image_id_column < file.width:
        raise ValueError(f"{tsv} has {file.width} columns and no column {image_id_column}, from 0")
    generated_rows, per_row = survey(generated, len(file), allow_missing)
    if per_row < keep:
        raise ValueError(
            f"cannot keep {keep} captions of {per_row} per image: sample more by --beam and --nbest"
        )
    inputs = {
        "files": [[os.fspath(path), *_stamp(path)] for path in (tsv, *generated)],
        "numbers": [keep, selected_cols, image_id_column, allow_missing, skip_bad_rows],
        "options": options or {},
    }
    output = Output(out, inputs)
    counts = output.counts
    with tqdm(total=generated_rows, initial=counts.rows, desc=out.name, unit="row") as bar:
        rows = _candidates(file, generated, image_id_column, counts, skip_bad_rows)
        while batch := list(islice(rows, batch_size)):
            images, captions = [c.image for c in batch], [c.captions for c in batch]
            scores = similarities(ranker, images, captions)
            lines = []
            for candidates, caption_scores in zip(batch, scores, strict=True):
                lines += _best_rows(file, candidates, caption_scores, keep, counts)
            output.write(lines)
            bar.update(counts.rows - bar.n)
        bar.update(counts.rows - bar.n)
    if not counts.kept:
        raise ValueError(f"{out}: no caption is left\n{counts.text(keep)}")
    output.publish()
    return counts


def _stamp(path: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _candidates(
    file: TsvFile, generated: Paths, image_id_column: int, counts: Counts, skip_bad_rows: bool
) -> Iterator[Candidates]:
    """Yield rows with captions to rank, starting after the rows in ``counts``."""
    done = counts.rows
    seen: set[str] = set()
    for number, (row, samples) in enumerate(read_samples(generated)):
        is_repeated, fields, image = False, [], None
        try:
            fields = file.fields(row)
            is_repeated = fields[image_id_column] in seen
            seen.add(fields[image_id_column])
            if number >= done and not is_repeated:
                image = _image(file, row, fields)
        except TsvError as error:
            if not skip_bad_rows or error.line is None:
                raise
        if number < done:
            continue
        counts.rows += 1
        if image is None:
            counts.same_image += is_repeated
            counts.broken += not is_repeated
            continue
        found = distinct(text.replace(SEPARATOR, " ").replace("\t", " ") for text in samples)
        counts.samples += len(samples)
        counts.empty += found.empty
        counts.duplicates += found.duplicates
        if not found.captions:
            counts.none += 1
            continue
        yield Candidates(fields, image, found.captions)


def _image(file: TsvFile, row: int, fields: list[str]) -> Image:
    try:
        return decode_image(fields[file.column_of("image")], file.path.parent)
    except ImageError as error:
        raise file.error(row, "image", error.message, error.remedy) from error


def _best_rows(
    file: TsvFile, candidates: Candidates, scores: list[float], keep: int, counts: Counts
) -> list[str]:
    """Return an image's lines; of equally good captions the one sampled first wins."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    counts.images += 1
    counts.fewer += len(order) < keep
    counts.kept += len(order[:keep])
    counts.similarity_kept += sum(scores[index] for index in order[:keep])
    counts.similarity_dropped += sum(scores[index] for index in order[keep:])
    lines = []
    for number, index in enumerate(order[:keep], start=1):
        fields = list(candidates.fields)
        fields[file.column_of("caption")] = candidates.captions[index]
        fields[file.column_of("uniq_id")] += f"#{number}"
        lines.append("\t".join(fields) + "\n")
    return lines
