"""Samples to a caption TSV: for every image the captions that the ranker finds the most alike."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from PIL.Image import Image
from tqdm import tqdm

from ofa_exit.data.caption import COLUMNS, OFFICIAL_COLS, SEPARATOR
from ofa_exit.data.files import write_bytes
from ofa_exit.data.images import ImageError, decode_image
from ofa_exit.data.tsv import TsvError, TsvFile
from ofa_exit.prepare.capfilt.rankers import Ranker, similarities
from ofa_exit.prepare.capfilt.samples import Paths, distinct, look_over, read_samples


@dataclass
class Counts:
    """What became of the samples and the rows that they are of."""

    rows: int = 0  # of the generation that were looked at
    same_image: int = 0  # rows whose image an earlier row had
    broken: int = 0  # rows whose image could not be read
    images: int = 0  # with at least one caption kept
    fewer: int = 0  # of them, with fewer than asked for
    none: int = 0  # images without any caption left
    samples: int = 0  # of the images
    empty: int = 0
    duplicates: int = 0
    kept: int = 0
    similarity_kept: float = 0.0  # sums
    similarity_dropped: float = 0.0

    def text(self, keep: int) -> str:
        """For people."""
        dropped = self.samples - self.empty - self.duplicates - self.kept
        lines = [
            f"{self.images} images with {self.kept} captions of {self.samples} samples",
            f"  {self.empty} empty, {self.duplicates} duplicates, {dropped} ranked below the best "
            f"{keep}",
            f"  {self.fewer} images with fewer than {keep}, {self.none} with none",
        ]
        if self.same_image:
            lines.append(f"  {self.same_image} rows left out: an earlier one has their image")
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
    """OUT.partial and how far it is, in OUT.partial.json, until it is renamed to OUT."""

    path: Path
    inputs: dict[str, Any]
    counts: Counts = field(default_factory=Counts)
    size: int = 0

    def __post_init__(self) -> None:
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.state = self.path.with_name(self.path.name + ".partial.json")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            state = json.loads(self.state.read_text(encoding="utf-8"))
            known = state["inputs"] == self.inputs and self.partial.stat().st_size >= state["size"]
        except (OSError, ValueError, LookupError):
            known = False
        if known:
            self.counts, self.size = Counts(**state["counts"]), state["size"]
        self.file = self.partial.open("r+b" if known else "wb")
        self.file.truncate(self.size)  # what was written after the last note
        self.file.seek(self.size)

    def write(self, lines: list[str]) -> None:
        """Rows, and the note that they are there."""
        self.size += self.file.write("".join(lines).encode("utf-8"))
        self.file.flush()
        os.fsync(self.file.fileno())
        note = {"inputs": self.inputs, "counts": asdict(self.counts), "size": self.size}
        write_bytes(self.state, json.dumps(note).encode("utf-8"))

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
    selected_cols: str = OFFICIAL_COLS,
    image_id_column: int = 1,
    allow_missing: bool = False,
    skip_bad_rows: bool = False,
    batch_size: int = 32,
    options: dict[str, Any] | None = None,
) -> Counts:
    """Writes ``out``: the rows of ``tsv`` with new captions, ``keep`` rows an image, best first.

    BLIPEE Section 3.4 samples 10 captions an image and keeps 2 by CLIP. The rows stand in the order
    of the generation; all columns but the caption's and the identifier's (ID#1, ID#2) stay. An
    image has its captions once, however many rows show it. ``out`` is whole or not there: a killed
    run leaves OUT.partial and goes on when it is called with the same ``options`` (what else tells
    the runs apart: the ranker), files and numbers. Memory: a batch of images.

    Raises ValueError as ``samples.look_over`` does, TsvError for a row without a readable image if
    not ``skip_bad_rows``, ValueError if no caption is left.
    """
    if keep < 1 or batch_size < 1:
        raise ValueError(f"{keep} captions an image, batches of {batch_size}: give at least 1")
    file = TsvFile(tsv, selected_cols, COLUMNS)
    if not 0 <= image_id_column < file.width:
        raise ValueError(f"{tsv} has {file.width} columns and no column {image_id_column}, from 0")
    survey = look_over(generated, len(file), allow_missing)
    if survey.most < keep:
        raise ValueError(
            f"{keep} captions an image are to be kept of {survey.most}: sample more by --beam and "
            "--nbest"
        )
    inputs = {
        "files": [[os.fspath(path), *_stamp(path)] for path in (tsv, *generated)],
        "numbers": [keep, selected_cols, image_id_column, allow_missing, skip_bad_rows],
        "options": options or {},
    }
    output = Output(out, inputs)
    counts = output.counts
    with tqdm(total=survey.rows, initial=counts.rows, desc=out.name, unit="row") as bar:
        rows = _candidates(file, generated, image_id_column, counts, skip_bad_rows)
        while batch := list(islice(rows, batch_size)):
            images, captions = [c.image for c in batch], [c.captions for c in batch]
            scores = similarities(ranker, images, captions)
            lines = []
            for candidates, of in zip(batch, scores, strict=True):
                lines += _best_rows(file, candidates, of, keep, counts)
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
    """Rows with captions to rank, from where ``counts`` says that an earlier run was."""
    done = counts.rows
    seen: set[str] = set()
    for at, (row, samples) in enumerate(read_samples(generated)):
        again, fields, image = False, [], None
        try:
            fields = file.fields(row)
            again = fields[image_id_column] in seen
            seen.add(fields[image_id_column])
            if at >= done and not again:
                image = _image(file, row, fields)
        except TsvError as error:
            if not skip_bad_rows or error.line is None:
                raise
        if at < done:
            continue
        counts.rows += 1
        if image is None:
            counts.same_image += again
            counts.broken += not again
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
        return decode_image(fields[file.column_of("image")])
    except ImageError as error:
        raise file.error(row, "image", error.message, error.remedy) from error


def _best_rows(
    file: TsvFile, candidates: Candidates, scores: list[float], keep: int, counts: Counts
) -> list[str]:
    """The lines of an image; of equally good captions the one sampled first."""
    order = sorted(range(len(scores)), key=lambda at: -scores[at])
    counts.images += 1
    counts.fewer += len(order) < keep
    counts.kept += len(order[:keep])
    counts.similarity_kept += sum(scores[at] for at in order[:keep])
    counts.similarity_dropped += sum(scores[at] for at in order[keep:])
    lines = []
    for number, at in enumerate(order[:keep], start=1):
        fields = list(candidates.fields)
        fields[file.column_of("caption")] = candidates.captions[at]
        fields[file.column_of("uniq_id")] += f"#{number}"
        lines.append("\t".join(fields) + "\n")
    return lines
