"""Validation of captioning: its metrics, and its skipped rows."""

import logging
import re

import pytest
import torch
from fairseq.logging import metrics
from helpers import caption_task
from helpers import task_files as files
from helpers.caption_task import NO_IMAGE, TASK

from ofa_exit.evaluation.metrics.captions import score_captions
from ofa_exit.plugin.errors import UsageError

# Fixtures.
data, checkpoint, models = caption_task.data, caption_task.checkpoint, caption_task.models


def test_validation_metrics_are_over_the_whole_split(data, checkpoint, models):
    task = files.setup(TASK, data / "valid.tsv")
    found = files.generate_rows(task, models, beam=2)
    references = [
        row.split("\t")[2].split("&&") for row in (data / "valid.tsv").read_text().splitlines()
    ]
    hypotheses = [found[number][0]["words"] for number in range(9)]
    expected = score_captions(hypotheses, references, "plain").values
    metrics.reset()
    with metrics.aggregate() as seen:
        files.validate(
            *(data, checkpoint, "--task", TASK, "--batch-size", "4", "--eval-cider", "--eval-bleu"),
            *("--eval-args", '{"beam": 2, "max_len_b": 6}'),
        )
    values = seen.get_smoothed_values()
    assert values["cider"] == pytest.approx(expected["CIDEr"], abs=0.002)
    assert values["bleu"] == pytest.approx(expected["BLEU-4"], abs=0.002)
    assert expected["BLEU-1"] > 0


def test_the_validation_loss_is_at_full_depth(data, models):
    plain = files.setup(TASK, data, eval_cider=True)
    exiting = files.setup(TASK, data, eval_bleu=True, exit_policy="static", exit_depths="1,1,1")
    logs, texts = [], []
    for task in (plain, exiting):
        task.load_dataset("valid")
        task.eval_generator = task.validation_generator(models[0])
        task.validation_sums = lambda sample, hypotheses: texts.append(hypotheses) or {}
        batch = task.dataset("valid").collater([task.dataset("valid")[n] for n in range(4)])
        criterion = files.criterion(task)
        logs.append(task.valid_step(batch, models[0], criterion)[2])
        assert models[0].encoder.exit_policy is None
    assert logs[0] == logs[1]
    assert len(texts) == 2


def test_metrics_of_workers_add_up(data, models):
    task = files.setup(TASK, data, eval_cider=True, eval_bleu=True)
    task.load_dataset("valid")
    rows = task.dataset("valid")
    loss = files.criterion(task)

    def outputs(*batches):
        """What a worker's batches log, with hypotheses that have something in common with them."""
        logs = []
        for numbers in batches:
            batch = rows.collater([rows[number] for number in numbers])
            words = [f"a square of {('red', 'blue')[number % 2]} paint" for number in numbers]
            logs.append({"ntokens": 1, **task.validation_sums(batch, words)})
        return logs

    def reduced(logs):
        metrics.reset()
        with metrics.aggregate() as seen:
            for log in logs:
                task.reduce_metrics([log], loss)
        values = seen.get_smoothed_values()
        return values["cider"], values["bleu"]

    whole = reduced(outputs(range(9)))
    assert min(whole) > 1
    parts = outputs(range(4), range(4, 7)), (*outputs(range(7, 9)), {})
    summed_by_fairseq = [
        {key: one[key] + other.get(key, 0) for key in one} for one, other in zip(*parts)
    ]
    assert reduced(summed_by_fairseq) == pytest.approx(whole)


def test_training_validates_shards_and_keeps_the_best(data, tmp_path, caplog):
    train = f"{data}/train.tsv,{data}/train.tsv,{data}/valid.tsv"
    save_dir = tmp_path / "checkpoints"
    with caplog.at_level(logging.INFO):
        last = files.train(
            *(TASK, train, save_dir, "--eval-cider", "--eval-args", '{"beam": 1}'),
            *("--best-checkpoint-metric", "cider", "--maximize-best-checkpoint-metric"),
            *("--max-epoch", "2", "--num-workers", "1", "--exit-policy", "similarity"),
            updates=6,
        )
    assert "valid_cider" in caplog.text
    assert "loading train data for epoch 2" in caplog.text
    state = torch.load(last)
    best = torch.load(save_dir / "checkpoint_best.pt")
    assert state["extra_state"]["best"] == best["extra_state"]["best"]
    assert state["cfg"]["task"]["patch_image_size"] == 32


def valid_losses(printed):
    return re.findall(r'"valid_loss": "([0-9.]+)".*"valid_cider": "([0-9.]+)"', printed)


def test_a_skipped_batch_does_not_count_in_validation(data, tmp_path, caplog):
    """The trainer would evaluate a training batch in its place."""
    train_rows = [files.caption_row(number) for number in range(12)]
    good = [files.caption_row(number, 2) for number in range(8)]
    bad = [[*row[:4], NO_IMAGE] for row in good[:4]]
    seen = []
    for name, valid_rows in (("good", good), ("bad", [*good[:4], *bad, *good[4:]])):
        folder = files.write_dictionary(tmp_path / name)
        files.write_tsv(folder / "train.tsv", train_rows)
        files.write_tsv(folder / "valid.tsv", valid_rows)
        with caplog.at_level(logging.INFO):
            files.train(
                *(TASK, folder, tmp_path / f"{name}_saved", "--skip-bad-rows", "--seed", "1"),
                *("--eval-cider", "--eval-args", '{"beam": 1, "max_len_b": 4}'),
                updates=1,
            )
        seen.append(valid_losses(caplog.text))
        caplog.clear()
    assert seen[0] and seen[0] == seen[1]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_no_good_row_ends_on_one_line(checkpoint, tmp_path, monkeypatch, split):
    monkeypatch.setattr("atexit.register", lambda *_: None)
    folder = files.write_dictionary(tmp_path / "data")
    for name in ("train", "valid", "test"):
        rows = [files.caption_row(n, 1, NO_IMAGE if name == split else None) for n in range(5)]
        files.write_tsv(folder / f"{name}.tsv", rows)
    with pytest.raises(UsageError, match=rf"{split}\.tsv: none of the 5 rows can be used") as error:
        if split == "test":
            files.generate(TASK, folder, checkpoint, "--skip-bad-rows")
        else:
            files.train(TASK, folder, tmp_path / "saved", "--skip-bad-rows", updates=1)
    assert "\n" not in str(error.value)


def test_validation_logs_which_rows_it_skipped(tmp_path, checkpoint, caplog):
    folder = files.write_dictionary(tmp_path / "data")
    rows = [files.caption_row(number) for number in range(4)]
    rows[2][4] = rows[3][4] = NO_IMAGE
    files.write_tsv(folder / "valid.tsv", rows)
    logger = logging.getLogger("ofa_exit")
    logger.addHandler(caplog.handler)  # the command may remove those of the root
    try:
        files.validate(
            *(folder, checkpoint, "--task", TASK, "--batch-size", "2", "--skip-bad-rows"),
            *("--eval-cider", "--eval-args", '{"beam": 1, "max_len_b": 2}'),
        )
    finally:
        logger.removeHandler(caplog.handler)
    # Where the command keeps the handlers of the root, a record comes twice.
    found = {id(one) for one in caplog.records if "valid.tsv: 2 of 4 rows" in one.getMessage()}
    assert len(found) == 1
