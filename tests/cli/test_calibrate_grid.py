"""Outcomes that follow from others: against running every setting."""

from __future__ import annotations

import itertools
import typing
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairseq.tasks import TASK_DATACLASS_REGISTRY

import ofa_exit.plugin  # noqa: F401  registers the tasks
from ofa_exit.cli.calibrate.candidates import (
    MOST_SETTINGS,
    Axis,
    _evenly,
    _half_steps,
    _thinned,
    candidates,
)
from ofa_exit.cli.calibrate.outcomes import Outcome, fill_grid, select_rows
from ofa_exit.cli.calibrate.run import costs_to_save, reject_too_few, reject_without_references
from ofa_exit.cli.grid import exit_settings
from ofa_exit.evaluation.calibration.losses import Sentence
from ofa_exit.plugin.errors import UsageError


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
    # Not more than the paths that differ, each bisected to both ends of its box.
    kinds = sum(len({found[row][place].path for place in places}) for row in range(20))
    corners = 2 * sum(size.bit_length() for size in shape)
    assert sum(ran) <= min(20 * len(places), kinds * corners)
    assert len(places) == 1 or sum(ran) < 0.9 * 20 * len(places)


def test_a_row_whose_ends_agree_runs_twice():
    ran = []

    def run(place, rows):
        ran.append((place, rows))
        return [Outcome("same", {}, 1) for _ in rows]

    assert len(fill_grid((3, 4, 5), [7], run)[7]) == 60
    assert ran == [((0, 0, 0), [7]), ((2, 3, 4), [7])]


def test_too_many_values_are_thinned_evenly_and_keep_their_ends():
    assert _evenly([*range(8)], 6) == [0, 1, 3, 4, 6, 7]
    assert _evenly([*range(6)], 5) == [0, 1, 2, 4, 5]
    assert _evenly([4, 5], 1) == [4] and _evenly([3], 1) == [3]
    axes = _thinned(
        [Axis(name, [*range(size)], True, True) for name, size in (("a", 6), ("b", 30))]
    )
    sizes = [len(axis.values) for axis in axes]
    assert sizes == [6, 25] and all(len(set(axis.values)) == len(axis.values) for axis in axes)


@pytest.mark.parametrize("is_split", [True, False])
def test_the_careful_end_of_similarity(is_split):
    """Thresholds near 1, where captions exit: a fine step there loses least."""
    cfg = TASK_DATACLASS_REGISTRY["mue_caption"]()
    cfg.exit_policy = "similarity"
    model = Namespace(split_modalities=is_split, encoder_layers=6, decoder_layers=6)
    found = candidates(cfg, "caption", model)
    tried = {one.given.get("exit_decoder_threshold") for one in found.settings}
    assert {2.0, 0.98, 0.85} < tried and tried & {0.99, 0.995}
    assert len(found.settings) <= MOST_SETTINGS + 1
    assert ("exit_image_threshold" in found.settings[1].given) == is_split


def test_settings_are_made_without_reading_the_types_of_all_policies_again(monkeypatch):
    cfg = TASK_DATACLASS_REGISTRY["mue_caption"]()
    cfg.exit_policy = "similarity"
    exit_settings([{}], cfg, "caption", "grid", "sweep")
    calls = []
    hints = typing.get_type_hints
    monkeypatch.setattr(typing, "get_type_hints", lambda cls: calls.append(cls) or hints(cls))
    grid = [{"exit_decoder_threshold": n / 100} for n in range(50)]
    assert len(exit_settings(grid, cfg, "caption", "grid", "sweep")) == 50 and not calls


def test_costs_of_settings_that_never_exit():
    """Test rows do not decide which do; image tokens exit without a layer less."""
    costs = {"time": [4.0, 3.0, 2.0, 1.0], "flops": [9.0] * 4}
    rows = [
        Sentence(0, [], ["x"] * 4, {**costs, "layers": [1.0, 1.0, 1.0, 0.9]}),
        Sentence(1, [], ["x"] * 4, {**costs, "layers": [1.0, 0.5, 1.0, 0.9]}),
    ]
    kinds = [None, None, "tokens", None]
    settings = [SimpleNamespace(token_exits=one) for one in kinds]
    found = costs_to_save(rows, "time", settings, np.array([0]))
    assert found.T.tolist() == [[4, 4, 2, 1]] * 2  # the second setting exits on a test row only
    assert costs_to_save(rows, "time", settings, np.array([1])).T.tolist() == [[4, 3, 2, 1]] * 2


@pytest.mark.parametrize(
    ("metric", "mean", "message"),
    [
        ("cider", 0.1, r"500 rows.*mean score is 0\.1000: at least 1575 are needed"),
        ("cider", 0.0, "the full model scores 0"),
        ("accuracy", 0.1, r"at least 1510 are needed"),
    ],
)
def test_rows_that_are_too_few_for_the_mean_of_the_full_model(metric, mean, message):
    args = Namespace(keep=0.96, confidence=0.95, metric=metric)
    reject_too_few(500, args)  # which is not known before
    with pytest.raises(UsageError, match=message):
        reject_too_few(500, args, mean)
    reject_too_few(1575, args, max(mean, 0.1))


def test_answers_of_several_forms_are_rejected_before_anything_runs():
    def examples(*answers):
        rows = [{"answers": one} for one in answers]
        file = SimpleNamespace(columns=("answers",), path="x.tsv", row=rows.__getitem__)
        return type("Examples", (), {"file": file, "__len__": lambda self: len(rows)})()

    ten = "&&".join(["1.0|!+yes"] * 10)
    reject_without_references(examples("1.0|!+no", "1.0|!+yes"), "vqa")
    reject_without_references(examples(ten, "1.0|!+no"), "accuracy")
    with pytest.raises(UsageError, match=r"--metric vqa: some rows have the answers of 10"):
        reject_without_references(examples(ten, "1.0|!+no"), "vqa")


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
