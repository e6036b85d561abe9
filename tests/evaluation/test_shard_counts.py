"""Counts in the reports of shards: kinds and values that cannot be are rejected."""

import dataclasses
import json
import math

import pytest

from ofa_exit.evaluation.efficiency.shards import check_shards, read_shard
from ofa_exit.evaluation.efficiency.totals import RunTotals
from ofa_exit.runtime.flops import PARTS

NO_FLOPS = dict.fromkeys(PARTS, 0)


def totals(**changed):
    """The totals of a run without sentences, as a report holds them."""
    empty = {"seconds": 0.5, "counted": 0, "executed": NO_FLOPS, "full": NO_FLOPS, "biases": {}}
    made = RunTotals.of([], 6, 6, [], 0, **empty)
    return {**dataclasses.asdict(made), **changed}


def write_shard(folder, number: int = 0, of: int = 2, **changed):
    folder.mkdir()
    (folder / "generate-test.txt").write_text("Generate test with beam=5: 0\n")
    record = {"shard": number, "of": of, "rows": 1, "all_rows": 2, "run": {}, "trace": None}
    record = {**record, "totals": totals(), **changed}
    (folder / "log.txt").write_text(f"Exit shard: {json.dumps(record)}\n")
    return folder


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("words", value) for value in (-5, "7", None, True, 1.5, [1], 10**40)),
        *((name, math.nan) for name in ("seconds", "encoder_layers", "expected_time_reduction")),
        *(("decoder_depth", value) for value in (math.inf, -1.0)),
        *(("executed", value) for value in ({}, [1], "x", None, {**NO_FLOPS, "stem": -(10**15)})),
        ("full", {**NO_FLOPS, "stem": math.nan}),
        *(("biases", value) for value in ([1], {"6": -1}, {"6": "x"})),
        *(("exits", value) for value in (None, 3, ["x"], [-1])),
        ("reference_layers", "6,6"),
        ("prompt", 5),
        *((name, 1) for name in ("images", "texts", "counted", "words_by_head", "accepted")),
    ],
)
def test_counts_that_cannot_be_are_rejected(name, value):
    with pytest.raises(ValueError, match=rf"^{name} is .*: generate the shard again$"):
        RunTotals.from_dict(totals(**{name: value}))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"expected_time_reduction": -0.5},  # heads that cost more than they save
        {"exits": [2, 4], "reference_layers": [6, 6], "prompt": "1 2"},
        {"sentences": 3, "images": 3, "texts": 2, "counted": 3, "biases": {"6": 10}},
        {"executed": {**NO_FLOPS, "stem": 10**15}, "seconds": 3},
    ],
)
def test_counts_that_can_be_are_read(changed):
    assert dataclasses.asdict(RunTotals.from_dict(totals(**changed))) == totals(**changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"rows": -2},
        {"all_rows": -2},
        *({"shard": value} for value in (-1, 2)),
        {"of": 0},
        {"trace": 5},
        {"totals": math.nan},
        {"totals": totals(words=-5)},
    ],
)
def test_a_report_is_rejected_with_its_file(tmp_path, changed):
    number = changed.pop("shard", 0)
    folder = write_shard(tmp_path / "shard", number, **changed)
    with pytest.raises(ValueError, match=r"log\.txt, line 'Exit shard': "):
        read_shard(folder)


def test_a_number_of_shards_that_cannot_be_held(tmp_path):
    shards = [read_shard(write_shard(tmp_path / f"{n}", n, of=10**9)) for n in range(2)]
    with pytest.raises(ValueError, match=r"no 2, no 3, no 4, no 5, no 6: generate"):
        check_shards(shards)
