"""The benchmark of lossless mode: forced drafts, equal tokens, one line per variant."""

import csv

from benchmarks import lossless


def test_rates_are_those_of_right_drafts(tmp_path):
    out = tmp_path / "out.csv"
    arguments = ["--arch", "ofa_nano", "--image-size", "32", "--vocabulary", "120", "--steps", "9"]
    sizes = ["--rounds", "3", "--layers", "2", "--tokens", "3", "--rates", "0", "0.7", "1"]
    assert lossless.main([*arguments, *sizes, "--csv", str(out)]) == 0
    lines = {row["variant"]: row for row in csv.DictReader(out.open())}
    none, some, every = (
        lines[f"layer 2, 3 tokens, {rate} right"] for rate in ("0%", "70%", "100%")
    )
    assert float(none["accepted_share"]) == 0 and float(none["words_per_round"]) == 1
    assert 0 < float(some["accepted_share"]) < 1
    # Nine words in rounds of four: the end of the sentence closes the third.
    assert float(every["accepted_share"]) == 1 and float(every["words_per_round"]) == 3
    assert lines["full depth"]["accepted_share"] == ""
    assert float(every["speedup_of_decoder"]) > 0
