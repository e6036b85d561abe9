"""CapFilt: what is read of a generation, and what a ranker keeps of it."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.capfilt_samples import captions, sampled_rows, write_samples
from helpers.task_files import COLOURS, caption_row, write_dictionary, write_tsv
from PIL import Image

from ofa_exit.data.caption import CaptionExamples
from ofa_exit.data.images import ImageLoader
from ofa_exit.data.tsv import TsvError
from ofa_exit.prepare.capfilt import filtering
from ofa_exit.prepare.capfilt.__main__ import main
from ofa_exit.prepare.capfilt.checkpoint import load_text_encoder
from ofa_exit.prepare.capfilt.filtering import filter_captions
from ofa_exit.prepare.capfilt.rankers import similarities
from ofa_exit.prepare.capfilt.samples import distinct, look_over, read_samples


class ColourRanker:
    """A picture is its colour, a text the first colour that it names; shorter texts fit better."""

    def embed_images(self, images):
        seen = [image.getpixel((0, 0)) for image in images]
        palette = [Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in COLOURS]
        rows = torch.tensor([[float(one == pixel) for one in palette] for pixel in seen])
        return torch.cat([rows, torch.zeros(len(rows), 1)], dim=1)

    def embed_texts(self, texts):
        rows = torch.zeros(len(texts), len(COLOURS) + 1)
        for row, text in zip(rows, texts):
            named = [at for at, colour in enumerate(COLOURS) if colour in text.split()]
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
    found = look_over(paths, 3)
    assert (found.rows, found.samples, found.most) == (3, 6, 2)
    assert look_over(paths, 5, allow_missing=True).rows == 3


@pytest.mark.parametrize(
    ("rows", "of", "message"),
    [
        ({0: ["x", "y"], 4: ["x", "y"]}, 3, "the TSV has 3"),
        ({0: ["x", "y"], 2: ["x", "y"]}, 3, r"1 of 3 rows have no samples \(lines 2\)"),
        ({0: ["x", "y"], 1: ["x"]}, 2, "1 rows with 1, 1 rows with 2"),
        ({}, 2, "nothing was generated"),
    ],
)
def test_generations_that_are_not_whole(rows, of, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        look_over([write_samples(tmp_path / "a", rows)], of)


def test_a_file_given_twice(tmp_path):
    path = write_samples(tmp_path / "a", {0: ["x"]})
    with pytest.raises(ValueError, match="generated twice"):
        look_over([path, path], 1)


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


def test_what_is_kept_is_training_data(sampled):
    tsv, parts, out = sampled
    filter_captions(ColourRanker(), parts, tsv, out)
    encoder = load_text_encoder(write_dictionary(out.parent))
    rows = CaptionExamples(out, encoder, ImageLoader(32), train=True)
    assert [rows[at].uniq_id for at in range(len(rows))] == ["c2#1", "c2#2", "c0#1", "c0#2", "c1#1"]


def test_a_killed_run_goes_on(sampled, monkeypatch):
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
        file.write(b"torn")  # a row that was on its way
    monkeypatch.setattr(
        filtering, "similarities", lambda *a: ranked.append(len(a[1])) or similarities(*a)
    )
    assert filter_captions(ColourRanker(), parts, tsv, out, batch_size=1) == whole
    assert out.read_bytes() == expected
    assert ranked == [1]  # of three images two were ranked before
    # Another ranker starts over.
    with pytest.raises(KeyboardInterrupt):
        filter_captions(Killed(), parts, tsv, out, batch_size=1)
    filter_captions(ColourRanker(), parts, tsv, out, batch_size=1, options={"ranker": "other"})
    assert len(ranked) == 1 + 3 + 3  # the third call was the one that was killed


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
        ({"keep": 4}, "4 captions an image are to be kept of 3"),
        ({"keep": 0}, "at least 1"),
        ({"image_id_column": 9}, "no column 9"),
    ],
)
def test_numbers_that_make_no_sense(sampled, options, message):
    tsv, parts, out = sampled
    with pytest.raises(ValueError, match=message):
        filter_captions(ColourRanker(), parts, tsv, out, **options)


def test_a_ranker_that_is_broken(sampled):
    class Broken(ColourRanker):
        def embed_texts(self, texts):
            return super().embed_texts(texts) * math.nan

    tsv, parts, out = sampled
    with pytest.raises(FloatingPointError, match="not numbers"):
        filter_captions(Broken(), parts, tsv, out)


def test_one_row_an_image(tmp_path, capsys):
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
