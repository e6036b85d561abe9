"""--exit-lossless in the tasks: outputs of full depth, options that are rejected, the report."""

import json

import pytest
from helpers import caption_task
from helpers import task_files as files
from helpers.caption_task import TASK
from helpers.vqa_samples import WORDS, row
from PIL import Image

import ofa_exit
from ofa_exit.cli import sweep
from ofa_exit.plugin.errors import PredictionError, UsageError

# Fixtures.
data, checkpoint, models = caption_task.data, caption_task.checkpoint, caption_task.models
ANSWERS = [*files.COLOURS, "dark red", "dark green", "dark", "2", "two", "dark red square"]


def assert_lossless(setup, models, **options):
    """Rows of a task with drafts are those without; returns the task with drafts."""
    expected = files.generate_rows(setup(), models, beam=1, **options)
    for count, layer in ((1, 1), (4, 2), (3, 5)):
        task = setup(exit_lossless=count, exit_lossless_layer=layer)
        found = files.generate_rows(task, models, beam=1, **options)
        caption_task.assert_same(found, expected)
    return task


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(
    "options", [{}, {"no_repeat_ngram_size": 3, "min_len": 3}, {"prefix_size": 2}], ids=str
)
def test_captions_are_those_of_full_depth(data, models, batch_size, options):
    task = assert_lossless(
        lambda **drafts: files.setup(TASK, data, **drafts), models, batch_size=batch_size, **options
    )
    summary = task.exit_reports[0].summary()
    assert summary["sentences"] == 11 and summary["drafted"] >= summary["accepted"] > 0
    assert summary["accepted_share"] == summary["accepted"] / summary["drafted"]
    assert summary["decoder_layers"] == 6
    if batch_size == 1:  # each step is a round, or takes an accepted draft
        rounds = summary["accepted"] / (summary["words_per_round"] - 1)
        assert summary["words"] == pytest.approx(rounds + summary["accepted"])
    assert "drafts accepted" in task.exit_reports[0].table()


def test_captions_after_a_prompt(data, models):
    task = assert_lossless(
        lambda **drafts: files.setup(TASK, data, caption_prompt="a square of", **drafts), models
    )
    assert task.exit_reports[0].summary()["accepted"] >= 2 * 11  # words of the prompt


def test_words_of_closed_sets_after_prompts_of_different_lengths(tmp_path):
    folder = files.write_dictionary(tmp_path / "vqa", WORDS)
    (folder / "answers.txt").write_text("".join(f"{answer}\n" for answer in ANSWERS))
    files.write_tsv(folder / "train.tsv", [row(n, "train") for n in range(12)])
    files.write_tsv(folder / "test.tsv", [row(n, "weighted") for n in range(9)])
    given = {"answers": f"{folder}/answers.txt", "prompt_type": "prev_output"}
    checkpoint = files.train(
        *("mue_vqa", folder, tmp_path / "run", "--disable-validation"),
        *("--answers", given["answers"], "--prompt-type", "prev_output"),
        updates=4,
    )
    models = files.load(files.setup("mue_vqa", folder, **given), checkpoint)
    task = assert_lossless(
        lambda **drafts: files.setup(
            "mue_vqa", folder, beam_search_vqa_eval=True, **given, **drafts
        ),
        models,
        unnormalized=True,
    )
    assert task.exit_reports[0].summary()["accepted_share"] > 0.5  # prompts are known
    with pytest.raises(UsageError, match="scores given answers"):
        files.setup("mue_vqa", folder, exit_lossless=3, **given)


def test_the_command_generates_and_reports(data, checkpoint):
    usual = ["--beam", "1", "--gen-subset", "test", "--no-repeat-ngram-size", "3"]
    full = files.generate(TASK, data, checkpoint, *usual)
    lines = files.generate(TASK, data, checkpoint, *usual, "--exit-lossless", "4")
    assert {n: rows[0][1] for n, rows in lines["D"].items()} == {
        n: rows[0][1] for n, rows in full["D"].items()
    }
    (summary,) = (line for line in lines["report"] if line.startswith("Exit summary: "))
    assert json.loads(summary.partition(": ")[2])["drafted"] > 0
    assert not any("draft" in line for line in full["report"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"--beam is 5, but --exit-lossless .* give --beam 1"),
        (["--beam", "2", "--nbest", "2"], "--beam is 2"),
        (["--beam", "1", "--sampling"], "--sampling is not supported"),
        (["--beam", "1", "--diversity-rate", "0.5"], "--diversity-rate is not supported"),
        (["--beam", "1", "--score-reference"], "leave --exit-lossless out"),
        (["--beam", "1", "--exit-policy", "similarity"], "--exit-policy similarity: drafts are"),
        (["--beam", "1", "--exit-lossless-layer", "6"], "the model has 6 decoder layers"),
        (["--beam", "1", "--exit-lossless-layer", "0"], "--exit-lossless-layer 0"),
        (["--beam", "1", "--exit-lossless", "0"], "--exit-lossless 0"),
    ],
    ids=str,
)
def test_options_that_do_not_go_with_drafts(data, checkpoint, given, message):
    arguments = ["--gen-subset", "test", "--exit-lossless", "3", *given]
    with pytest.raises(UsageError, match=message):
        files.generate(TASK, data, checkpoint, *arguments)


def test_a_layer_without_drafts_and_a_task_without_search(data):
    with pytest.raises(UsageError, match="--exit-lossless-layer 2 without --exit-lossless"):
        files.setup(TASK, data, exit_lossless_layer=2)
    with pytest.raises(UsageError, match="scores given answers"):
        files.setup("mue_snli_ve", data, exit_lossless=2)


def test_validation_generates_with_drafts(data, checkpoint):
    with pytest.raises(UsageError, match="--eval-args: beam is 5"):
        files.setup(TASK, data, exit_lossless=2, eval_cider=True)
    logs = []
    for drafts in ({}, {"exit_lossless": 2}):
        task = files.setup(TASK, data, eval_cider=True, eval_args='{"beam": 1}', **drafts)
        (model,) = files.load(task, checkpoint)
        task.load_dataset("valid")
        rows = task.dataset("valid")
        batch = rows.collater([rows[number] for number in range(4)])
        logs.append(task.valid_step(batch, model.eval(), files.criterion(task))[2])
        assert (model.last_trace is not None) == bool(drafts)
        assert model.decoder.drafting is None
    assert logs[0]["_cider_sum"] == logs[1]["_cider_sum"]


def test_sweeps_have_no_drafts(data, checkpoint, tmp_path):
    (tmp_path / "grid.json").write_text("[{}]")
    with pytest.raises(UsageError, match="nothing to sweep"):
        sweep.main(
            [
                *(str(tmp_path / "grid.json"), str(tmp_path / "out.csv")),
                *files.generate_arguments(TASK, data, checkpoint, "--beam", "1"),
                *("--exit-lossless", "2"),
            ]
        )


def test_predictions(data, checkpoint, tmp_path):
    model = ofa_exit.load(checkpoint, bpe_dir=str(data), device="cpu")
    images = [Image.new("RGB", (16, 16), colour) for colour in files.COLOURS]
    full = model.caption(images, beam=1)
    found = model.caption(images, lossless=3, lossless_layer=2)
    assert [one.text for one in found] == [one.text for one in full]
    assert [one.layers for one in found] == [one.layers for one in full]
    with pytest.raises(PredictionError, match="give --beam 1"):
        model.caption(images, lossless=3, beam=5)
    with pytest.raises(PredictionError, match="--exit-lossless is '3'"):
        model.caption(images, lossless="3")
    with pytest.raises(PredictionError, match="has 6 decoder"):
        model.caption(images, lossless=3, lossless_layer=9)
    with pytest.raises(PredictionError, match="scores given answers"):
        model.entail(images, "a red square", lossless=3)
