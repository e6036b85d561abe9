"""Outcomes that follow from others: against running every setting."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from ofa_exit.cli.calibrate.candidates import _half_steps
from ofa_exit.cli.calibrate.outcomes import Outcome, fill_grid, select_rows


@pytest.mark.parametrize("shape", [(1,), (9,), (4, 3), (3, 4, 5)])
def test_a_filled_grid_equals_one_that_was_run(shape):
    """A row's path at a place: for each axis the first of a few layers whose number it reaches."""
    draw = np.random.default_rng(sum(shape))
    limits = draw.integers(0, 12, (20, len(shape), 3))
    ran = []

    def outcome(row, place):
        path = tuple(
            next((n for n, limit in enumerate(limits[row, axis]) if value >= limit), 9)
            for axis, value in enumerate(place)
        )
        return Outcome(f"{path}", {}, path)

    def run(place, rows):
        ran.append(len(rows))
        return [outcome(row, place) for row in rows]

    found = fill_grid(shape, range(20), run)
    places = [*itertools.product(*map(range, shape))]
    for row in range(20):
        assert set(found[row]) == set(places)
        assert all(found[row][place] == outcome(row, place) for place in places)
    assert sum(ran) < 20 * len(places) or len(places) == 1


def test_no_rows():
    assert fill_grid((3,), [], None) == {}


def batch(shared: bool):
    net_input = {
        "src_tokens": torch.arange(8).view(4, 2),
        "patch_images": torch.arange(2 if shared else 4).view(-1, 1),
        "patch_masks": torch.tensor([True, False, True, True]),
        "padded": True,
        "text_keys": [*"wxyz"],
    }
    if shared:
        net_input["image_rows"] = torch.tensor([0, 1, 1, 0])
    return {
        "id": torch.arange(4) + 10,
        "nsentences": 4,
        "uniq_ids": [*"abcd"],
        "net_input": net_input,
        "subset": "test",
    }


def test_rows_of_a_batch():
    chosen = select_rows(batch(False), [1, 3])
    assert chosen["id"].tolist() == [11, 13] and chosen["uniq_ids"] == ["b", "d"]
    assert chosen["nsentences"] == 2 and chosen["subset"] == "test"
    assert chosen["net_input"]["patch_images"].flatten().tolist() == [1, 3]
    assert chosen["net_input"]["patch_masks"].tolist() == [False, True]
    assert chosen["net_input"]["text_keys"] == ["x", "z"] and chosen["net_input"]["padded"] is True


def test_rows_that_share_an_image():
    both = select_rows(batch(True), [1, 2])["net_input"]
    assert both["patch_images"].flatten().tolist() == [1]
    assert both["image_rows"].tolist() == [0, 0]
    apart = select_rows(batch(True), [2, 3])["net_input"]
    assert apart["patch_images"].flatten().tolist() == [1, 0] and "image_rows" not in apart


def test_lists_between_two_thresholds_are_careful_in_lower_layers():
    assert _half_steps([2.0, 0.9, 0.8], 5) == [
        2.0,
        "2,2,2,0.9,0.9",
        0.9,
        "0.9,0.9,0.9,0.8,0.8",
        0.8,
    ]
    assert _half_steps([0.9, 0.8], 1) == [0.9, 0.8]
