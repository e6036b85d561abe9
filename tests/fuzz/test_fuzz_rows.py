"""Rows of TSV files with damaged fields and bytes, against the data sets and ``ofa-exit check``."""

from __future__ import annotations

import base64
import io
import random
from pathlib import Path

import pytest
import torch
from helpers import data_samples as samples
from helpers import fuzzing
from helpers.fuzzing import BYTE_EDITS, TEXTS, attempt, folder_for_one, fuzz, run_verb
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ofa_exit.data.caption import CaptionExamples
from ofa_exit.data.images import ImageLoader, image_transform
from ofa_exit.data.snli_ve import EntailmentExamples
from ofa_exit.data.tsv import TsvError
from ofa_exit.data.vqa import QuestionExamples

pytestmark = pytest.mark.slow
SIZE = 32


def noise(seed: int = 0, size: tuple[int, int] = (9, 7)) -> Image.Image:
    """An image in which every wrong byte shows."""
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))


FIELD = samples.encoded(noise())
WORDS = (*samples.WORDS.split(), "question", "what")
TASKS = {
    "caption": (CaptionExamples, 4, lambda n: samples.caption_row(n, image=FIELD)),
    "snli_ve": (EntailmentExamples, 2, lambda n: samples.entailment_row(n, image=FIELD)),
    "vqa": (
        QuestionExamples,
        5,
        lambda n: [f"q{n}", f"i{n}", "what runs ?", "1.0|!+a dog&&0.3|!+cat", "dog", FIELD],
    ),
}
# The image field cut or changed within its base64.
FIELDS = st.one_of(
    st.sampled_from(TEXTS),
    st.text(max_size=30),
    st.integers(0, len(FIELD)).map(lambda end: FIELD[:end]),
    st.tuples(st.integers(0, len(FIELD) - 1), st.sampled_from("AZaz09-_+/=. \t\x00é")).map(
        lambda edit: FIELD[: edit[0]] + edit[1] + FIELD[edit[0] + 1 :]
    ),
)
FIELD_EDITS = st.lists(
    st.tuples(
        st.sampled_from(("replace", "replace", "replace", "drop", "add")),
        st.integers(0, 2),
        st.integers(0, 5),
        FIELDS,
    ),
    max_size=3,
)


def file_content(rows: list[list[str]], edits, byte_edits, end: str) -> bytes:
    for kind, row, column, text in edits:
        fields = rows[row]
        column %= len(fields) or 1
        fields[column : column + (kind != "add")] = [] if kind == "drop" else [text]
    content = "".join("\t".join(row) + end for row in rows)
    return fuzzing.damaged(content.encode(errors="surrogatepass"), byte_edits)


def lines_of(content: bytes) -> list[bytes]:
    """The rows by their definition: lines, without empty ones at the end."""
    lines = [line.rstrip(b"\r") for line in content.split(b"\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def pixels(field: str, folder: Path) -> torch.Tensor | None:
    """The image of a field by Pillow alone."""
    text = field.strip()
    if not text:
        return None
    if "." in text:
        data = (folder / text).read_bytes()
    else:
        data = base64.urlsafe_b64decode(text.rstrip("=").replace("+", "-").replace("/", "_") + "==")
    return image_transform(SIZE)(Image.open(io.BytesIO(data)).convert("RGB"))


def check_example(task: str, example, fields: list[str], image_column: int, folder: Path) -> None:
    """An accepted row has the texts and the pixels of its line."""
    assert example.uniq_id == " ".join(fields[0].split())
    wanted = pixels(fields[image_column], folder)
    assert (example.image is None) == (wanted is None)
    if wanted is not None:
        torch.testing.assert_close(example.image, wanted, rtol=0, atol=0)
    if task == "caption":
        captions = " ".join(fields[2].split()).split("&&")
        assert example.references == [caption.strip() for caption in captions]
    elif task == "snli_ve":
        answers = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}
        label = fields[5].strip().lower()
        assert example.references == [answers.get(label, label)]


@pytest.mark.parametrize("task", TASKS)
@fuzz(160)
@given(edits=FIELD_EDITS, byte_edits=st.one_of(st.just([]), BYTE_EDITS), end=st.sampled_from(
    ("\n", "\r\n", "\n\n", "")))  # fmt: skip
def test_a_damaged_row_is_read_right_or_named(tmp_path, task, edits, byte_edits, end):
    kind, image_column, row_of = TASKS[task]
    content = file_content([row_of(n) for n in range(3)], edits, byte_edits, end)
    with folder_for_one(tmp_path) as folder:
        noise(1).save(folder / "photo.png")
        path = folder / "valid.tsv"
        path.write_bytes(content)

        def read():
            return kind(path, samples.word_encoder(WORDS), ImageLoader(SIZE))

        examples = attempt(folder, str(path), read)
        status, printed = run_verb(folder, str(path), "check", str(path), "--task", task)
        assert (status == 2) == (examples is None)
        if examples is None:
            return
        lines = lines_of(content)
        assert len(examples) == len(lines)
        good = []
        for row, line in enumerate(lines):
            example = attempt(folder, f"{path}, line {row + 1}", lambda row=row: examples[row])
            good.append(example is not None)
            if example is not None:
                fields = line.decode("utf-8-sig" if row == 0 else "utf-8").split("\t")
                check_example(task, example, fields, image_column, folder)
        *problems, _ = printed.splitlines() if status == 0 else printed.split("\n")[:-1]
        if task != "vqa":  # where check measures what validation does
            assert [f"{path}:{n + 1}:" for n in range(len(lines)) if not good[n]] == [
                line.partition(": ")[0] + ":" for line in problems if line.startswith(str(path))
            ]
        assert status == int(any(line.startswith(f"{path}:") for line in problems))


@fuzz(60)
@given(text=st.one_of(st.sampled_from(TEXTS), st.text(alphabet="0123456789,-. ١²", max_size=12)))
def test_selected_columns_are_right_or_rejected(tmp_path, text):
    with folder_for_one(tmp_path) as folder:
        path = samples.write_tsv(folder / "a.tsv", [samples.caption_row(n) for n in range(2)])

        def read():
            loader = ImageLoader(SIZE)
            return CaptionExamples(path, samples.word_encoder(), loader, selected_cols=text)

        examples = attempt(folder, str(path), read, TsvError)
        if examples is not None:
            chosen = [int(part) for part in (text or "0,4,2").split(",")]
            assert [examples.file.column_of(name) for name in examples.file.columns] == chosen
