"""run_scripts/emoji/capfilt.sh through the real commands: sample, train a ranker, filter."""

from __future__ import annotations

from helpers.emoji_scripts import PLAIN, few_rows, script

from examples.emoji.capfilt_ranker.checkpoint import load_text_encoder
from ofa_exit.data.caption import CaptionExamples
from ofa_exit.data.images import ImageLoader


def test_captions_for_a_split(tmp_path):
    data, out = few_rows(tmp_path / "data"), tmp_path / "out"
    small = {"DATA": str(data), "SAMPLES": "4", "EPOCHS": "1", "BATCH": "4"}
    printed = script("capfilt.sh", PLAIN, "test_artist", out, **small)
    assert "8 images with" in printed and "of 32 samples" in printed
    rows = CaptionExamples(
        out / "caption_synthetic.tsv", load_text_encoder(data), ImageLoader(64), train=True
    )
    ids = [rows[index].uniq_id for index in range(len(rows))]
    assert 8 <= len(ids) <= 16 and len({name.rpartition("#")[0] for name in ids}) == 8
    again = script("capfilt.sh", PLAIN, "test_artist", out, **small)
    assert "caption_synthetic.tsv" in again and "images with" not in again
