"""One prepared file from start to end: look over the annotations, write, check, publish."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from . import manifest, writer
from .images import Files, encoded_length
from .problems import Problems
from .records import Item, LeftOut, PrepareError, Problem, Record

_SAMPLE = 97  # every so many rows an image's size is asked for


@dataclass(frozen=True)
class Job:
    """A file to write. ``items`` starts over on each call and gives the same each time.

    ``entry`` is what the release counts (questions, rounds); ``expected`` holds the published
    numbers of rows, images or that.
    """

    path: Path
    sources: tuple[Path, ...]
    items: Callable[[], Iterator[Item]]
    options: dict[str, Any] = field(default_factory=dict)
    entry: str = "rows"
    expected: dict[str, int] = field(default_factory=dict)


@dataclass
class Survey:
    """What the annotations hold, found before the first image is read.

    ``missing``: rows without an image, which are among the problems.
    """

    found: dict[str, int]
    missing: int
    left_out: Counter[str]
    bytes: int


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(job: Job, files: Files, *, skip_missing: bool, strict_counts: bool) -> Path:
    """Prepare ``job.path`` if it is not there from the same inputs; returns it.

    All bad records and images are listed in FILE.problems.txt. Raises PrepareError: any of them
    without ``skip_missing``, counts other than the published with ``strict_counts``, no rows at
    all.
    """
    inputs = manifest.fingerprint(job.sources, {**job.options, "skip_missing": skip_missing})
    manifest.refuse_another_release(job.path, inputs, writer.partial_inputs(job.path))
    partial = writer.resumable(job.path, inputs)
    if partial is None:
        done = manifest.finished(job.path)
        # What was skipped for want of an image may be in other folders.
        if (
            done is not None
            and done["inputs"] == inputs
            and (not done["skipped"] or done["folders"] == _names(files))
        ):
            again = f"; {done['skipped']:,} were skipped: remove it to try them again"
            told = f"{job.path}: there already, {done['output']['rows']:,} rows"
            say(told + again * bool(done["skipped"]))
            return job.path
    if partial is False or (partial is None and job.path.exists()):
        kind = "partial file" if partial is False else "file"
        say(f"{job.path}: the {kind} there is not from these inputs and options; starting over")
    with Problems(job.path) as problems:
        survey = look_over(job, files, problems)
        _check_problems(job, problems, skip_missing)
        _check_counts(job, survey, strict_counts)
        _check_space(job, survey)
        with tqdm(total=survey.found["rows"] - survey.missing, desc=job.path.name, unit="row") as b:
            written = writer.write_rows(
                job.path, inputs, job.items(), files, problems, advance=b.update,
                skip_broken=skip_missing,
            )  # fmt: skip
        if len(problems) and not skip_missing:  # images, which are read no sooner
            raise _refusal(job, problems)
        if not written.rows:
            raise PrepareError(f"{job.path}: not one row could be written{problems.shown()}")
    manifest.write_manifest(
        job.path,
        {
            "output": {
                "file": job.path.name,
                "rows": written.rows,
                "bytes": written.size,
                "sha256": written.digest.hexdigest(),
            },
            "inputs": inputs,
            "folders": _names(files),
            "counts": {"found": survey.found, "published": job.expected},
            "left_out": dict(survey.left_out),
            "skipped": len(problems),
            "problems": problems.path.name if len(problems) else None,
        },
    )
    # After its manifest, so that a file in place always has the manifest that fits it.
    writer.publish(job.path, written)
    resumed = f", {written.kept:,} of them from an earlier run" if written.kept else ""
    lost = f"; {len(problems):,} skipped, see {problems.path.name}" if len(problems) else ""
    say(f"{job.path}: {written.rows:,} rows{resumed}{lost}")
    return job.path


def _names(files: Files) -> list[str]:
    return [str(folder.resolve()) for folder in files.folders]


def look_over(job: Job, files: Files, problems: Problems) -> Survey:
    """Read all annotations once: counts, missing images, bad records, and the space needed."""
    rows = entries = missing = sampled = sizes = 0
    last = told = None
    images: set[str] = set()
    left_out: Counter[str] = Counter()
    for item in tqdm(job.items(), desc=f"{job.path.name}: looking", unit="row", leave=False):
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
            if told != (item.image_names, item.id):  # once for all answers to a question
                problems.add(Problem(item.image_names[0], item.id, "there is no such image"))
            told = (item.image_names, item.id)
        elif rows % _SAMPLE == 1:
            sampled += 1
            sizes += encoded_length(image) + _text_length(item)
    if rows and missing == rows:
        raise PrepareError(
            f"{job.path.name}: none of its images is below {', '.join(_names(files))}; one of them "
            f"is {min(images)}. Unpack them there, or name their folders by --images"
        )
    found = {job.entry: entries, "images": len(images), "rows": rows}
    return Survey(found, missing, left_out, sizes * rows // max(1, sampled))


def _text_length(record: Record) -> int:
    return sum(len(column or "") + 1 for column in record.columns)


def _check_problems(job: Job, problems: Problems, skip_missing: bool) -> None:
    if not len(problems):
        return
    if not skip_missing:
        raise _refusal(job, problems)
    say(f"warning: {_told(job, problems)}\nThey are skipped")


def _refusal(job: Job, problems: Problems) -> PrepareError:
    return PrepareError(
        f"{_told(job, problems)}\nFetch what is missing or broken (images may lie in further "
        "folders: --images), or leave such rows out by --skip-missing"
    )


def _told(job: Job, problems: Problems) -> str:
    return f"{job.path.name}: {len(problems):,} records cannot become rows:{problems.shown()}"


def _check_counts(job: Job, survey: Survey, strict: bool) -> None:
    wrong = [
        f"{survey.found[what]:,} {what}, published {number:,}"
        for what, number in job.expected.items()
        if survey.found[what] != number
    ]
    if not wrong:
        return
    text = f"{job.path.name} is not the published split: {'; '.join(wrong)}"
    if strict:
        raise PrepareError(
            f"{text}. Fetch the annotations again, or go without --strict-counts to prepare a part"
        )
    say(f"warning: {text}")


def _check_space(job: Job, survey: Survey) -> None:
    partial = writer.partial_path(job.path)
    job.path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(job.path.parent).free
    needed = survey.bytes - (partial.stat().st_size if partial.exists() else 0)
    if needed > free:
        say(
            f"warning: {job.path} will need some {needed / 1e9:.1f} GB more and the disk has "
            f"{free / 1e9:.1f} GB; a full disk stops the run, which can then be resumed"
        )
