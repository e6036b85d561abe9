"""--exit-image-tokens through the commands and from Python."""

from __future__ import annotations

import pytest
from helpers import task_files as files
from helpers.photos import write_photos
from helpers.task_files import caption_folder, generate, train

import ofa_exit
from ofa_exit.cli import generation, sweep
from ofa_exit.plugin.errors import PredictionError, UsageError

HALF = ["--exit-image-tokens", "0.5"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    data = caption_folder(folder / "data")
    return data, train("mue_caption", data, folder / "run", "--disable-validation", updates=2)


def saved(report: list[str]) -> float:
    """The share of FLOPs that a report names."""
    (line,) = (one for one in report if one.startswith("flop_reduction"))
    return float(line.split()[1])


def test_generation_reports_what_tokens_save(trained):
    full = generate("mue_caption", *trained, "--exit-image-tokens", "1")
    half = generate("mue_caption", *trained, *HALF)
    both = generate(
        "mue_caption", *trained, *HALF, "--exit-policy", "static", "--exit-depths=6,2,6"
    )
    assert saved(full["report"]) == 0 < saved(half["report"]) < saved(both["report"])


def test_a_sweep_takes_numbers_lists_and_texts(trained):
    data, checkpoint = trained
    scoring = ["--scoring", "coco_caption", "--coco-tokenizer", "plain"]
    arguments = files.generate_arguments("mue_caption", data, checkpoint, *scoring)
    shares = [0.5, "0.5,0.5,0.5,0.5,0.5", [0.5] * 5, "0.5"]
    rows = sweep.sweep([{}, *({"exit_image_tokens": one} for one in shares)], arguments)
    assert len({row["flop_reduction"] for row in rows[1:]}) == 1
    assert rows[0]["flop_reduction"] == 0 < rows[1]["flop_reduction"]
    assert all(row["image_layers"] == rows[0]["image_layers"] for row in rows)


def test_python_takes_them(trained, tmp_path):
    data, checkpoint = trained
    write_photos(tmp_path, 2)
    model = ofa_exit.load(checkpoint, bpe_dir=data, device="cpu")
    photos = sorted(tmp_path.glob("*.*"))
    full, all_tokens = (model.caption(photos, **one) for one in ({}, {"image_tokens": 1}))
    assert [one.score for one in full] == [one.score for one in all_tokens]
    half = model.caption(photos, image_tokens=[0.5] * 5)
    assert [one.score for one in half] != [one.score for one in full]
    with pytest.raises(PredictionError, match="--exit-lossless and --exit-image-tokens"):
        model.caption(photos, image_tokens=0.5, lossless=2)


def test_a_list_of_another_length_is_rejected_before_weights_are_read(trained, monkeypatch):
    monkeypatch.setattr(generation.checkpoint_utils, "load_model_ensemble", None)
    with pytest.raises(UsageError, match="--exit-image-tokens gives 2 numbers"):
        generate("mue_caption", *trained, "--exit-image-tokens", "0.5,0.4")


def test_training_without_a_search_rejects_it(trained, tmp_path):
    with pytest.raises(UsageError, match=r"--exit-image-tokens 0\.5: the loss is computed at full"):
        train("mue_caption", trained[0], tmp_path, *HALF, updates=1)
