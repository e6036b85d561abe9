"""One prepared file from start to end: survey the annotations, check, write, publish."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ofa_exit.data.row_index import row_offsets
from ofa_exit.regular_files import regular_file

from . import manifest, writer
from .images import Files, encoded_length
from .problems import Problems
from .records import Item, LeftOut, PrepareError, Problem, Record

_ROWS_PER_SAMPLE = 97  # the size of every 97th image is read
_ROWS_CHECKED = 1000  # of a file that exists already


@dataclass(frozen=True)
class Job:
    """A file to write.

    Args:
        sources: the annotation files.
        items: returns the items; each call starts over and gives the same items.
        options: what else the rows depend on.
        entry: what the release counts: questions, rounds.
        expected: published numbers of rows, images or entries.
    """

    path: Path
    sources: tuple[Path, ...]
    items: Callable[[], Iterator[Item]]
    options: dict[str, Any] = field(default_factory=dict)
    entry: str = "rows"
    expected: dict[str, int] = field(default_factory=dict)


@dataclass
class Survey:
    """Contents of the annotations, counted before the first image is read.

    Args:
        found: numbers of entries, images and rows.
        missing: rows without an image, which are also problems.
        left_out: entries without a row, by reason.
        bytes: estimated size of the file.
    """

    found: dict[str, int]
    missing: int
    left_out: Counter[str]
    bytes: int


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(job: Job, files: Files, *, skip_missing: bool, strict_counts: bool) -> Path:
    """Prepare ``job.path``, unless it exists and has the same inputs. Return the path.

    FILE.problems.txt lists all bad records and images. Raises PrepareError: a problem without
    ``skip_missing``, counts that differ from the published ones with ``strict_counts``, no rows,
    another run that writes the file, a pipe or device in its place.
    """
    inputs = manifest.fingerprint(job.sources, {**job.options, "skip_missing": skip_missing})
    writer.check_files(job.path)
    # Without the lock first: a finished file may be in a read-only folder.
    if not _is_finished(job, files, inputs):
        with writer.locked(job.path):
            # Another run may have written it meanwhile.
            if not _is_finished(job, files, inputs):
                _write(job, files, inputs, skip_missing, strict_counts)
    return job.path


def _is_finished(job: Job, files: Files, inputs: dict[str, Any]) -> bool:
    """Return whether ``job.path`` is complete and has these inputs, and log it.

    Raises PrepareError: it is of another data set, or holds other images than ``files``.
    """
    partial = writer.partial_inputs(job.path)
    manifest.check_release(job.path, inputs, partial)
    done = manifest.finished(job.path) if partial is None else None
    if done is None or done["inputs"] != inputs:
        return False
    # Images that were missing may be in other folders now.
    if done["skipped"] and done["folders"] != _names(files):
        return False
    with suppress(OSError):  # of a run that was killed once the file was finished
        writer.remove_inputs(job.path)
    if not done["skipped"]:
        _check_images(job, files)
    again = f"; {done['skipped']:,} were skipped: remove it to try them again"
    message = f"{job.path}: exists already, {done['output']['rows']:,} rows"
    log(message + again * bool(done["skipped"]))
    return True


def _write(
    job: Job, files: Files, inputs: dict[str, Any], skip_missing: bool, strict_counts: bool
) -> None:
    """Survey the annotations, write the rows or resume them, and publish the file.

    The process holds the lock of the file: another one must not change the partial file before it
    has its final name.
    """
    partial = writer.partial_inputs(job.path)
    if partial != inputs and (partial is not None or job.path.exists()):
        kind = "file" if partial is None else "partial file"
        log(
            f"{job.path}: the existing {kind} was changed, or is not from these inputs and "
            "options; starting over"
        )
    with Problems(job.path) as problems:
        summary = survey(job, files, problems)
        if len(problems):
            if not skip_missing:
                raise _rejection(job, problems)
            log(f"warning: {_listed(job, problems)}\nThey are skipped")
        _check_counts(job, summary, strict_counts)
        _check_space(job, summary)
        with tqdm(
            total=summary.found["rows"] - summary.missing, desc=job.path.name, unit="row"
        ) as b:
            written = writer.write_rows(
                job.path, inputs, job.items(), files, problems, advance=b.update,
                skip_broken=skip_missing,
            )  # fmt: skip
        if len(problems) and not skip_missing:  # broken images, found while writing
            raise _rejection(job, problems)
        if not written.rows:
            raise PrepareError(f"{job.path}: not one row could be written{problems.shown()}")
    manifest.write_manifest(
        job.path,
        written.rows,
        writer.partial_path(job.path).stat(),
        written.digest.hexdigest(),
        inputs=inputs,
        folders=_names(files),
        counts={"found": summary.found, "published": job.expected},
        left_out=dict(summary.left_out),
        skipped=len(problems),
        problems=problems.path.name if len(problems) else None,
    )
    # After its manifest, so that a published file always has the right one.
    writer.publish(job.path, written)
    resumed = f", {written.kept:,} of them from an earlier run" if written.kept else ""
    lost = f"; {len(problems):,} skipped, see {problems.path.name}" if len(problems) else ""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(summary.left_out.items()))
    left_out = f"; left out: {reasons}" if reasons else ""
    log(f"{job.path}: {written.rows:,} rows{resumed}{lost}{left_out}")


def _check_images(job: Job, files: Files) -> None:
    """Raise PrepareError if rows of the finished file hold other images than ``files``.

    Some of the first rows are compared, those with an image in ``files``.
    """
    _, offsets = row_offsets(job.path)
    records = (item for item in job.items() if isinstance(item, Record))
    checked = itertools.islice(enumerate(records), 0, _ROWS_CHECKED, _ROWS_PER_SAMPLE)
    with regular_file(job.path).open("rb") as file:
        for number, record in checked:
            image = files.image(record.image_names)
            file.seek(int(offsets[number]))
            row = file.read(int(offsets[number + 1] - offsets[number]))
            if image is not None and not writer.holds(row, record, image):
                raise PrepareError(
                    f"{job.path}, line {number + 1}: it does not hold {image}, but another file of "
                    "this image, such as one of another size. Choose another folder, or remove it"
                )


def _names(files: Files) -> list[str]:
    return [str(folder.resolve()) for folder in files.folders]


def survey(job: Job, files: Files, problems: Problems) -> Survey:
    """Read all annotations once: count them, find missing images and bad records."""
    rows = entries = missing = sampled = sizes = 0
    last = reported = None
    images: set[str] = set()
    left_out: Counter[str] = Counter()
    for item in tqdm(job.items(), desc=f"{job.path.name}: survey", unit="row", leave=False):
        entries += item.id != last
        last = item.id
        if isinstance(item, Problem):
            problems.add(item)
            continue
        images.add(item.image_names[0])
        if isinstance(item, LeftOut):
            left_out[item.reason] += 1
            continue
        rows += 1
        image = files.image(item.image_names)
        if image is None:
            missing += 1
            if reported != (item.image_names, item.id):  # once for all answers to a question
                problems.add(Problem(item.image_names[0], item.id, "image not found"))
            reported = (item.image_names, item.id)
        elif rows % _ROWS_PER_SAMPLE == 1:
            sampled += 1
            sizes += encoded_length(image) + sum(len(text or "") + 1 for text in item.columns)
    if rows and missing == rows:
        raise PrepareError(
            f"{job.path.name}: none of its images is below {', '.join(_names(files))}; one of them "
            f"is {min(images)}. Unpack them there, or name their folders with --images"
        )
    found = {job.entry: entries, "images": len(images), "rows": rows}
    return Survey(found, missing, left_out, sizes * rows // max(1, sampled))


def _rejection(job: Job, problems: Problems) -> PrepareError:
    return PrepareError(
        f"{_listed(job, problems)}\nDownload what is missing or broken (--images names further "
        "folders of images), or leave such rows out with --skip-missing"
    )


def _listed(job: Job, problems: Problems) -> str:
    return f"{job.path.name}: {len(problems):,} records cannot become rows:{problems.shown()}"


def _check_counts(job: Job, summary: Survey, strict: bool) -> None:
    wrong = [
        f"{summary.found[what]:,} {what}, published {number:,}"
        for what, number in job.expected.items()
        if summary.found[what] != number
    ]
    if not wrong:
        return
    text = f"{job.path.name} is not the published split: {'; '.join(wrong)}"
    if strict:
        raise PrepareError(
            f"{text}. Download the annotations again, or omit --strict-counts to prepare a part"
        )
    log(f"warning: {text}")


def _check_space(job: Job, summary: Survey) -> None:
    partial = writer.partial_path(job.path)
    job.path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(job.path.parent).free
    needed = summary.bytes - (partial.stat().st_size if partial.exists() else 0)
    if needed > free:
        log(
            f"warning: {job.path} needs about {needed / 1e9:.1f} GB more and the disk has "
            f"{free / 1e9:.1f} GB; a full disk stops the run, which can then be resumed"
        )
