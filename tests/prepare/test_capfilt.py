"""CapFilt: reading sampled captions, and keeping those that a ranker prefers."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.capfilt_samples import captions, sampled_rows, write_samples
from helpers.task_files import COLOURS, caption_row, write_dictionary, write_tsv
from PIL import Image

from examples.emoji.capfilt_ranker.checkpoint import load_text_encoder
from ofa_exit.cli.capfilt import main
from ofa_exit.data.caption import CaptionExamples
from ofa_exit.data.images import ImageLoader
from ofa_exit.data.tsv import TsvError
from ofa_exit.prepare.capfilt import filtering
from ofa_exit.prepare.capfilt.filtering import filter_captions
from ofa_exit.prepare.capfilt.rankers import similarities
from ofa_exit.prepare.capfilt.samples import distinct, read_samples, survey


class ColourRanker:
    """Embeds an image by its colour, a text by its first colour word; short texts fit better."""

    def embed_images(self, images):
        pixels = [image.getpixel((0, 0)) for image in images]
        palette = [Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in COLOURS]
        rows = torch.tensor([[float(one == pixel) for one in palette] for pixel in pixels])
        return torch.cat([rows, torch.zeros(len(rows), 1)], dim=1)

    def embed_texts(self, texts):
        rows = torch.zeros(len(texts), len(COLOURS) + 1)
        for row, text in zip(rows, texts):
            named = [n for n, colour in enumerate(COLOURS) if colour in text.split()]
            row[-1] = len(text)
            if named:
                row[named[0]] = 100
        return torch.nn.functional.normalize(rows, dim=1)


# ------------------------------------------------------------------ samples


def test_samples_of_shards(tmp_path):
    paths = [
        write_samples(tmp_path / "a", {2: ["x", "y"], 0: ["z", ""]}),
        write_samples(tmp_path / "b", {1: ["x", "x"]}),
    ]
    assert list(read_samples(paths)) == [(2, ["x", "y"]), (0, ["z", ""]), (1, ["x", "x"])]
    assert survey(paths, 3) == survey(paths, 5, allow_missing=True) == (3, 2)


@pytest.mark.parametrize(
    ("rows", "count", "message"),
    [
        ({0: ["x", "y"], 4: ["x", "y"]}, 3, r"row 4\b.* 3 rows"),
        ({0: ["x", "y"], 2: ["x", "y"]}, 3, r"1 of 3 rows.*\(lines 2\)"),
        ({0: ["x", "y"], 1: ["x"]}, 2, "1 rows with 1, 1 rows with 2"),
        ({}, 2, r"D-.*--quiet"),
    ],
)
def test_incomplete_generations_are_rejected(rows, count, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        survey([write_samples(tmp_path / "a", rows)], count)


def test_a_file_given_twice(tmp_path):
    path = write_samples(tmp_path / "a", {0: ["x"]})
    with pytest.raises(ValueError, match=r"row 0\b"):
        survey([path, path], 1)


def test_distinct_samples():
    found = distinct(["a  dog", "A dog.", "", " !? ", "a cat", "a dog"])
    assert (found.captions, found.empty, found.duplicates) == (["a dog", "a cat"], 2, 2)


# ------------------------------------------------------------------ filtering


@pytest.fixture
def sampled(tmp_path):
    return sampled_rows(tmp_path)


def test_the_best_are_kept(sampled):
    tsv, parts, out = sampled
    counts = filter_captions(ColourRanker(), parts, tsv, out, keep=2, batch_size=2)
    assert captions(out) == [
        ["c2#1", "i2", "blue paint"],
        ["c2#2", "i2", "a blue square"],
        ["c0#1", "i0", "red"],
        ["c0#2", "i0", "a red square"],
        ["c1#1", "i1", "a green square"],
    ]
    source = [line.split("\t") for line in tsv.read_text().splitlines()]
    made = [line.split("\t") for line in out.read_text().splitlines()]
    assert [row[3:] for row in made] == [source[n][3:] for n in (2, 2, 0, 0, 1)]
    assert (counts.rows, counts.same_image, counts.images, counts.fewer, counts.none) == (
        *(5, 1, 3, 1),
        1,
    )
    assert (counts.samples, counts.empty, counts.duplicates, counts.kept) == (12, 4, 1, 5)
    assert sorted(path.name for path in out.parent.iterdir() if "partial" in path.name) == []


def test_the_output_is_training_data(sampled):
    tsv, parts, out = sampled
    filter_captions(ColourRanker(), parts, tsv, out)
    encoder = load_text_encoder(write_dictionary(out.parent))
    rows = CaptionExamples(out, encoder, ImageLoader(32), train=True)
    assert [rows[index].uniq_id for index in range(len(rows))] == [
        "c2#1",
        "c2#2",
        "c0#1",
        "c0#2",
        "c1#1",
    ]


def test_a_killed_run_resumes(sampled, monkeypatch):
    tsv, parts, out = sampled
    whole = filter_captions(ColourRanker(), parts, tsv, out, batch_size=1)
    expected = out.read_bytes()
    out.unlink()

    class Killed(ColourRanker):
        left = 2

        def embed_images(self, images):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            return super().embed_images(images)

    ranked = []
    with pytest.raises(KeyboardInterrupt):
        filter_captions(Killed(), parts, tsv, out, batch_size=1)
    assert not out.exists()
    partial = out.with_name("out.tsv.partial")
    with partial.open("ab") as file:
        file.write(b"torn")  # an unfinished row
    monkeypatch.setattr(
        filtering, "similarities", lambda *a: ranked.append(len(a[1])) or similarities(*a)
    )
    assert filter_captions(ColourRanker(), parts, tsv, out, batch_size=1) == whole
    assert out.read_bytes() == expected
    assert ranked == [1]  # two of three images were ranked before
    # Another ranker starts over.
    with pytest.raises(KeyboardInterrupt):
        filter_captions(Killed(), parts, tsv, out, batch_size=1)
    filter_captions(ColourRanker(), parts, tsv, out, batch_size=1, options={"ranker": "other"})
    assert len(ranked) == 1 + 3 + 3  # the third call was killed


def test_broken_images(sampled):
    tsv, parts, out = sampled
    rows = [line.split("\t") for line in tsv.read_text().splitlines()]
    rows[0][4] = "no base64!"
    write_tsv(tsv, rows)
    with pytest.raises(TsvError, match="line 1, field 'image'"):
        filter_captions(ColourRanker(), parts, tsv, out)
    counts = filter_captions(ColourRanker(), parts, tsv, out, skip_bad_rows=True)
    assert (counts.broken, counts.images) == (1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 4}, r"4 captions of 3.*--nbest"),
        ({"keep": 0}, "0 captions.*32"),
        ({"image_id_column": 9}, "no column 9"),
    ],
)
def test_invalid_numbers_are_rejected(sampled, options, message):
    tsv, parts, out = sampled
    with pytest.raises(ValueError, match=message):
        filter_captions(ColourRanker(), parts, tsv, out, **options)


def test_similarities_that_are_not_finite_are_rejected(sampled):
    class Broken(ColourRanker):
        def embed_texts(self, texts):
            return super().embed_texts(texts) * math.nan

    tsv, parts, out = sampled
    with pytest.raises(FloatingPointError, match="similarities"):
        filter_captions(Broken(), parts, tsv, out)


def test_one_row_per_image(tmp_path, capsys):
    rows = [caption_row(number) for number in (0, 1, 0, 2)]
    rows[1][2] = ""
    out = tmp_path / "images.tsv"
    assert main(["images", str(write_tsv(tmp_path / "all.tsv", rows)), str(out)]) == 0
    assert captions(out) == [
        ["c0", "i0", "a red square"],
        ["c1", "i1", "unlabelled"],
        ["c2", "i2", "a blue square"],
    ]
    assert "3 images of 4 rows" in capsys.readouterr().out


RANKER = """
from pathlib import Path

import torch


class Lengths:
    def __init__(self, weight):
        self.weight = weight

    def embed_images(self, images):
        return torch.ones(len(images), 1)

    def embed_texts(self, texts):
        return torch.tensor([[self.weight * len(text)] for text in texts])


def load_ranker(checkpoint, device):
    return Lengths(float(Path(checkpoint).read_text()))
"""


def test_a_ranker_of_ones_own(sampled, tmp_path, capsys):
    """By a Python file and its checkpoint; the longest caption or the shortest is the best."""
    tsv, parts, out = sampled
    (tmp_path / "lengths.py").write_text(RANKER)
    given = ["filter", str(tsv), *map(str, parts), "--out", str(out), "--keep", "1"]
    given += ["--ranker", str(tmp_path / "lengths.py"), "--ranker-checkpoint"]
    for weight, first in (("1", "a blue square"), ("-1", "blue paint")):
        (tmp_path / f"weight{weight}").write_text(weight)
        assert main([*given, str(tmp_path / f"weight{weight}")]) == 0
        assert captions(out)[0] == ["c2#1", "i2", first]
    capsys.readouterr()
    (tmp_path / "lengths.py").write_text("")
    assert main([*given, "x"]) == 2
    assert main([*given[:-2], str(tmp_path / "no.py"), "--ranker-checkpoint", "x"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "lengths.py" in first and "load_ranker" in first and "no.py" in second


def test_a_dual_encoder_needs_a_checkout(sampled, tmp_path, monkeypatch, capsys):
    """Its code is part of the emoji example, which is not installed."""
    tsv, parts, out = sampled
    (tmp_path / "checkpoint_best.pt").write_bytes(b"")
    monkeypatch.setattr("ofa_exit.cli.capfilt.PACKAGE", tmp_path / "site" / "ofa_exit")
    given = ["filter", str(tsv), *map(str, parts), "--out", str(out)]
    assert main([*given, "--ranker", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "examples/emoji/capfilt_ranker" in line and str(tmp_path) in line
