"""A briefly trained captioning model, its captions at full depth, and exit options for it."""

from __future__ import annotations

import pytest
import torch

from helpers import task_files as files

TASK = "mue_caption"
NEVER = {"image": 1.0, "text": 1.0, "decoder": 1.0}
SIMILARITY = {"image": 0.9, "text": 0.9, "decoder": 0.9}
NO_IMAGE = "bm8gaW1hZ2U="


def similarity(thresholds, **more):
    named = {f"exit_{part}_threshold": value for part, value in thresholds.items()}
    return {"exit_policy": "similarity", **named, **more}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return files.caption_folder(tmp_path_factory.mktemp("caption"))


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        folder = tmp_path_factory.mktemp("checkpoint")
        return files.train(TASK, data, folder, "--disable-validation", updates=8)


@pytest.fixture(scope="module")
def models(data, checkpoint):
    return files.load(files.setup(TASK, data), checkpoint)


@pytest.fixture(scope="module")
def full_depth(data, models):
    """Captions at full depth, generated one sentence at a time."""
    found = files.generate_rows(files.setup(TASK, data), models, batch_size=1)
    assert sorted(found) == list(range(11))
    scores = {round(float(row[0]["score"]), 3) for row in found.values()}
    assert len(scores) == 6  # the model distinguishes the images
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for number, row in found.items():
        assert [h["tokens"].tolist() for h in row] == [
            h["tokens"].tolist() for h in expected[number]
        ]
        for one, other in zip(row, expected[number]):
            torch.testing.assert_close(one["score"], other["score"], atol=1e-4, rtol=1e-4)
