"""The reward: CIDEr-D with stored document frequencies, and its data."""

from __future__ import annotations

import math
import random
import re
from collections import Counter

import numpy as np
import pytest
from helpers import task_files as files
from helpers.paths import ROOT

from ofa_exit.cli.document_frequencies import main as count_command
from ofa_exit.cli.references import main as group_command
from ofa_exit.evaluation.metrics.cider_d import END, CiderD, DocumentFrequencies

WORDS = ["a", "man", "the", "cat", "dog", "sits", "on", "red", "mat", "under", "sky"]


@pytest.fixture
def corpus() -> list[list[str]]:
    random.seed(3)
    return [
        [" ".join(random.choices(WORDS, k=random.randint(1, 9))) for _ in range(1 + n % 3)]
        for n in range(30)
    ]


def grams(caption: str, n: int) -> Counter:
    tokens = [*caption.split(), END]
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def slow_cider_d(hypothesis: str, references: list[str], corpus: list[list[str]]) -> float:
    """Vedantam et al. 2015, Section 6, from the definition."""
    score = 0.0
    for n in range(1, 5):

        def idf(gram, n=n):
            documents = sum(any(gram in grams(c, n) for c in refs) for refs in corpus)
            return math.log(len(corpus)) - math.log(max(1, documents))

        def vector(caption, n=n, idf=idf):
            return {gram: count * idf(gram) for gram, count in grams(caption, n).items()}

        ours = vector(hypothesis)
        for reference in references:
            theirs = vector(reference)
            dot = sum(min(v, theirs.get(gram, 0)) * theirs.get(gram, 0) for gram, v in ours.items())
            norm = math.hypot(*ours.values()) * math.hypot(*theirs.values())
            gap = len(hypothesis.split()) - len(reference.split())
            score += (dot / norm if norm else 0) * math.exp(-(gap**2) / 72) / len(references)
    return 1000 * score / 4


def test_scores_follow_the_definition(corpus):
    cider = CiderD(DocumentFrequencies.of(corpus))
    hypotheses = [" ".join(reversed(refs[-1].split())) + " cat" for refs in corpus]
    found = cider.scores(hypotheses, corpus)
    expected = [slow_cider_d(*pair, corpus) for pair in zip(hypotheses, corpus)]
    assert found == pytest.approx(expected)
    assert len({round(value) for value in found}) > 10


def test_scores_do_not_depend_on_the_batch(corpus):
    cider = CiderD(DocumentFrequencies.of(corpus))
    many = [refs for refs in corpus for _ in range(4)]  # more captions than documents
    texts = [refs[0] for refs in many]
    together = cider.scores(texts, many)
    assert together == [cider.scores([t], [r])[0] for t, r in zip(texts, many)]
    assert cider.scores([], []) == []


def test_the_end_of_a_caption_counts(corpus):
    """Without it, the beginning of a reference would score as high as the whole."""
    cider = CiderD(DocumentFrequencies.of(corpus))
    reference = ["a red cat sits on the mat"]
    whole, cut, empty = cider.scores(
        ["a red cat sits on the mat", "a red cat sits on the", ""], [reference] * 3
    )
    assert whole == pytest.approx(1000) and cut < 900
    assert empty < 100 and math.isfinite(empty)


def test_frequencies_are_saved_and_loaded(corpus, tmp_path):
    frequencies = DocumentFrequencies.of(corpus)
    with (tmp_path / "df.npz").open("wb") as file:
        frequencies.save(file)
    read = DocumentFrequencies.load(tmp_path / "df.npz")
    assert read == frequencies and read.images == 30
    assert min(read.counts.values()) == 2
    assert read.counts[("cat",)] == sum(any("cat" in c.split() for c in refs) for refs in corpus)
    with np.load(tmp_path / "df.npz", allow_pickle=False) as arrays:
        assert all(array.dtype != object for array in arrays.values())


def test_frequencies_without_any_ngram_are_saved_and_loaded(tmp_path):
    frequencies = DocumentFrequencies(Counter(), 2)
    with (tmp_path / "df.npz").open("wb") as file:
        frequencies.save(file)
    assert DocumentFrequencies.load(tmp_path / "df.npz") == frequencies


@pytest.mark.parametrize("content", [None, b"", b"no zip", b"PK\x03\x04broken"])
def test_invalid_files_are_rejected(tmp_path, content):
    path = tmp_path / "df.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"df\.npz.*ofa-exit document-frequencies"):
        DocumentFrequencies.load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("counts", np.array(value)) for value in ([-2, 3], [0, 3], [2, 6], [2, 10**9])),
        *(("counts", np.array(value)) for value in ([2.0, np.nan], ["2", "3"], [[2], [3]], [2])),
        *(("images", np.float64(value)) for value in (np.nan, np.inf, 5.5)),
        *(("images", np.array(value)) for value in (1, -5, [5])),
        ("ngrams", np.frombuffer(b"a\na", dtype=np.uint8)),
        ("ngrams", np.frombuffer(b"a\n\xff", dtype=np.uint8)),
    ],
)
def test_frequencies_that_cannot_be_are_rejected(tmp_path, name, value):
    given = {"ngrams": np.frombuffer(b"a\na b", dtype=np.uint8), "images": np.int64(5)}
    given["counts"] = np.array([2, 5])
    np.savez(tmp_path / "df.npz", **given)
    assert DocumentFrequencies.load(tmp_path / "df.npz").counts == {("a",): 2, ("a", "b"): 5}
    np.savez(tmp_path / "df.npz", **{**given, name: value})
    with pytest.raises(ValueError, match=r"df\.npz.*ofa-exit document-frequencies"):
        DocumentFrequencies.load(tmp_path / "df.npz")


# ---------------------------------------------------------------------- the commands


def rows_of(path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


def several_rows_an_image(folder):
    """Two separate rows of i0, i1 with two captions, i2 with one."""
    rows = [files.caption_row(n) for n in (0, 1, 2, 0)]
    rows[1][2], rows[3][2] = "one && two", "another  caption"
    return files.write_tsv(folder / "train.tsv", rows)


def test_rows_of_an_image_become_one(tmp_path, capsys):
    path, out = several_rows_an_image(tmp_path), tmp_path / "out.tsv"
    assert group_command([str(path), str(out)]) == 0
    before, after = rows_of(path), rows_of(out)
    assert [row[2] for row in after] == [
        "a red square&&another caption", "one&&two", "a blue square",
    ]  # fmt: skip
    assert [row[:2] + row[3:] for row in after] == [row[:2] + row[3:] for row in before[:3]]
    assert "3 images, 5 captions" in capsys.readouterr().out
    assert group_command([str(out), str(tmp_path / "again.tsv")]) == 0
    assert (tmp_path / "again.tsv").read_text() == out.read_text()


def test_further_references_are_added(tmp_path):
    path = several_rows_an_image(tmp_path)
    further = tmp_path / "more.tsv"
    further.write_text("i2\ta blue square&&azure\ni9\tnot there\n")
    assert group_command([str(path), str(tmp_path / "o.tsv"), "--references", str(further)]) == 0
    assert [row[2] for row in rows_of(tmp_path / "o.tsv")][2] == "a blue square&&azure"


@pytest.mark.parametrize("command", [group_command, count_command])
def test_bad_rows_are_reported_by_line(tmp_path, command, capsys):
    rows = [files.caption_row(n) for n in range(3)]
    rows[1][2] = "fine&& ..."
    path = files.write_tsv(tmp_path / "train.tsv", rows)
    assert command([str(path), str(tmp_path / "out")]) == 2
    assert re.search(r"train\.tsv.*(line |:)2\b.*caption", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_one_image_is_not_enough(tmp_path, capsys):
    path = files.write_tsv(tmp_path / "train.tsv", [files.caption_row(0)])
    assert count_command([str(path), str(tmp_path / "out")]) == 2
    assert "two images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_frequencies_count_images_not_rows(tmp_path, capsys):
    path = several_rows_an_image(tmp_path)
    other = files.write_tsv(tmp_path / "b.tsv", [files.caption_row(n) for n in (0, 3)])
    assert count_command([f"{path},{other}", str(tmp_path / "df.npz")]) == 0
    frequencies = DocumentFrequencies.load(tmp_path / "df.npz")
    assert frequencies.images == 4
    assert frequencies.counts[("square",)] == 3  # i0 (in three rows), i2 and i3
    assert frequencies.counts[(END,)] == 4
    assert "of 4 images" in capsys.readouterr().out


def test_built_in_references_equal_those_of_the_training_rows():
    folder = ROOT / "examples" / "emoji"
    with (folder / "caption_train.tsv").open() as rows:
        captions = [line.split("\t")[1:3] for line in rows]
    references = rows_of(folder / "references_train.tsv")
    assert [[image, joined.split("&&")[0]] for image, joined in references] == captions
    assert sum(joined.count("&&") for _, joined in references) > 2000
    known = {line.split()[0] for line in (folder / "dict.txt").open()}
    assert {w for _, joined in references for w in joined.replace("&&", " ").split()} <= known
