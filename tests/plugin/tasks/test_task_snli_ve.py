"""Entailment: data, answers with and without exits, validation, and YAML configurations."""

import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from fairseq.logging import metrics
from helpers import task_files as files
from helpers.paths import ROOT

from ofa_exit.plugin.search.options import DEFAULTS
from ofa_exit.spelling import flag

TASK = "mue_snli_ve"
EXITS = {
    "exit_policy": "similarity",
    **{f"exit_{part}_threshold": 0.9 for part in ("image", "text", "decoder")},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return files.entailment_folder(tmp_path_factory.mktemp("entailment"))


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    """Train with the official task's files, prompt and validation accuracy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        return files.train(
            *(TASK, f"{data}/train.tsv,{data}/valid.tsv", tmp_path_factory.mktemp("checkpoint")),
            *("--selected-cols", "0,2,3,4,5", "--prompt-type", "prev_output", "--eval-acc"),
            *("--best-checkpoint-metric", "acc", "--maximize-best-checkpoint-metric"),
            updates=6,
        )


@pytest.fixture(scope="module")
def models(data, checkpoint):
    return files.load(files.setup(TASK, data), checkpoint)


PROMPTS = ["none", "src", "prev_output"]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("premise", [False, True])
def test_every_row_is_answered_once_with_the_same_result(data, models, prompt, premise):
    options = {"prompt_type": prompt, "add_caption": premise}
    alone = files.generate_rows(files.setup(TASK, data, **options), models, batch_size=1)
    assert sorted(alone) == list(range(11))
    for batches in ({"batch_size": 11}, {"batch_size": None, "max_tokens": 200}):
        together = files.generate_rows(files.setup(TASK, data, **options), models, **batches)
        assert together.keys() == alone.keys()
        for number, answers in together.items():
            assert {a["words"] for a in answers} == {"yes", "maybe", "no"}
            for one, other in zip(answers, alone[number]):
                assert one["words"] == other["words"]
                torch.testing.assert_close(one["score"], other["score"], atol=1e-4, rtol=1e-4)
    # There are only these three.
    total = sum(float(answer["score"].exp()) for answer in alone[0])
    assert total == pytest.approx(1, abs=1e-4)
    assert [alone[n][0]["references"] for n in range(3)] == ["yes", "maybe", "no"]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("kv", ["propagate", "recompute"])
def test_exits_are_traced_and_do_not_depend_on_the_batch(data, models, tmp_path, prompt, kv):
    traces = []
    for size in (1, 4):
        path = tmp_path / str(size)
        task = files.setup(
            TASK, data, prompt_type=prompt, exit_kv=kv, exit_trace=str(path), **EXITS
        )
        files.generate_rows(task, models, batch_size=size)
        summary = task.exit_reports[0].summary()
        assert summary["sentences"] == 11
        assert summary["words"] == 22
        assert summary["expected_time_reduction"] > 0
        assert summary["flop_reduction"] > 0
        traces.append(path.read_text())
    assert traces[0] == traces[1]
    record = json.loads(traces[0].splitlines()[0])
    assert [len(h["layers"]) for h in record["hypotheses"]] == [2, 2, 2]
    assert record["hypotheses"][0]["words"][1] == "</s>"


def test_the_papers_thresholds_are_the_default(data):
    policy = files.setup(TASK, data, exit_policy="similarity").exit_policy
    assert (policy.image_threshold, policy.text_threshold) == (0.9, 0.95)
    assert (policy.decoder_threshold, policy.schedule) == (0.95, "static")


def test_a_row_without_image_is_answered(tmp_path, models):
    folder = files.write_dictionary(tmp_path / "data")
    rows = [files.entailment_row(number) for number in range(3)]
    rows[1][2] = ""
    files.write_tsv(folder / "test.tsv", rows)
    for exits in ({}, EXITS):
        task = files.setup(TASK, folder, exit_trace=str(tmp_path / "trace"), **exits)
        assert len(files.generate_rows(task, models)) == 3
        records = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
        assert [bool(record["image_layers"]) for record in records] == [True, False, True]


def test_a_row_without_text_is_rejected_by_line(tmp_path, models):
    folder = files.write_dictionary(tmp_path / "data")
    rows = [files.entailment_row(number) for number in range(3)]
    rows[1][3] = " "
    files.write_tsv(folder / "test.tsv", rows)
    with pytest.raises(ValueError, match=r"(line |:)2\b.*hypothesis"):
        files.generate_rows(files.setup(TASK, folder), models)
    found = files.generate_rows(files.setup(TASK, folder, skip_bad_rows=True), models)
    assert sorted(found) == [0, 2]


def test_texts_beyond_the_models_positions_are_rejected_by_line(tmp_path, models):
    folder = files.write_dictionary(tmp_path / "data")
    row = files.entailment_row(0)
    row[3] = "square " * 200
    files.write_tsv(folder / "test.tsv", [row])
    assert len(files.generate_rows(files.setup(TASK, folder), models)) == 1  # truncated to 80 words
    with pytest.raises(ValueError, match=r"(line |:)1\b.*hypothesis.*\b128\b"):
        files.generate_rows(files.setup(TASK, folder, max_src_length=150), models)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            ({option: value}, f"{flag(option)} is not supported.*closed set")
            for option, value in {
                "beam": 1,
                "lenpen": 0.5,
                "unkpen": 1.0,
                "temperature": 0.5,
                "min_len": 2,
                "max_len_a": 0.5,
                "max_len_b": 16,
                "match_source_len": True,
                "unnormalized": True,
                "sampling": True,
                "sampling_topk": 3,
                "sampling_topp": 0.9,
                "diverse_beam_groups": 2,
                "diverse_beam_strength": 0.1,
                "diversity_rate": 0.1,
                "no_repeat_ngram_size": 3,
                "prefix_size": 1,
                "score_reference": True,
                "lm_path": "lm.pt",
                "lm_weight": 0.1,
                "eos_token": "no",
            }.items()
        ),
        ({"retain_dropout": True}, "--retain-dropout is not supported.*dropout"),
        ({"nbest": 4}, "--nbest 4.* 3 answers"),
    ],
)
def test_options_of_a_search_are_rejected(data, models, options, message):
    with pytest.raises(ValueError, match=message):
        files.generate_rows(files.setup(TASK, data), models, **options)


def test_fairseqs_defaults_are_accepted(data, models):
    """With every option set, as fairseq-generate passes them."""
    args = files.Namespace(**DEFAULTS)
    assert len(files.setup(TASK, data).build_generator(models, args).tree.answers) == 3


def test_invalid_options_are_rejected(data, tmp_path):
    with pytest.raises(ValueError, match="--prompt-type 'bos'"):
        files.setup(TASK, data, prompt_type="bos")
    folder = files.write_dictionary(tmp_path / "d", tuple(w for w in files.WORDS if w != "maybe"))
    with pytest.raises(ValueError, match="'maybe'"):
        files.setup(TASK, data, bpe_dir=str(folder))


# ---------------------------------------------------------------------- fairseq's commands


def test_generate_prints_the_best_answers_and_scores_them(data, checkpoint):
    lines = files.generate(
        *(TASK, data, checkpoint, "--scoring", "accuracy", "--nbest", "3"),
        *("--prompt-type", "prev_output", "--exit-policy", "similarity"),
    )
    correct = sum(lines["D"][n][0][1] == lines["T"][n][0][0] for n in range(11))
    assert f"accuracy = {100 * correct / 11:.2f} ({correct} of 11)" in lines["result"]
    for number in range(11):
        assert sorted(answer[1] for answer in lines["D"][number]) == ["maybe", "no", "yes"]
        scores = [float(answer[0]) for answer in lines["H"][number]]
        assert scores == sorted(scores, reverse=True)


def test_another_prompt_than_in_training_is_rejected(data, checkpoint):
    with pytest.raises(ValueError, match=r"--prompt-type is none.* trained with prev_output"):
        files.generate(TASK, data, checkpoint, "--prompt-type", "none")


def test_validation_reports_the_accuracy_of_the_split(data, checkpoint, models):
    task = files.setup(TASK, f"{data}/valid.tsv", prompt_type="prev_output")
    found = files.generate_rows(task, models)
    correct = sum(row[0]["words"] == row[0]["references"] for row in found.values())
    metrics.reset()
    with metrics.aggregate() as seen:
        files.validate(data, checkpoint, "--task", TASK, "--batch-size", "2", "--eval-acc")
    logged = seen.get_smoothed_values()
    assert logged["acc"] == pytest.approx(100 * correct / 9, abs=0.01)
    assert logged["snli_score"] == pytest.approx(correct / 9, abs=1e-3)  # OFA's name and unit
    best = torch.load(checkpoint.parent / "checkpoint_best.pt")["extra_state"]["best"]
    assert best in {round(100 * n / 9, 3) for n in range(10)}


def test_an_empty_batch_adds_nothing_to_validation(data, models, caplog):
    task = files.setup(TASK, data, eval_acc=True)
    loss, size, log = task.valid_step({}, models[0], files.criterion(task))
    assert (loss, size) == (0, 0)
    with metrics.aggregate() as seen, caplog.at_level(logging.ERROR):
        task.reduce_metrics([log], files.criterion(task))
    assert "acc" not in seen.get_smoothed_values()


def test_hydra_train_accepts_a_yaml_configuration(data, tmp_path):
    """In a separate process, with --user-dir."""
    (tmp_path / "entailment.yaml").write_text(
        f"""\
# @package _group_
common: {{cpu: true, log_format: json, user_dir: {ROOT / "user_dir"}}}
task:
  _name: mue_snli_ve
  data: {data}
  patch_image_size: 32
  code_dict_size: 0
  num_bins: 0
  eval_acc: true
  exit_policy: similarity
criterion: {{_name: mue_loss}}
dataset: {{batch_size: 4, num_workers: 0}}
optimization: {{max_update: 2, lr: [0.001]}}
optimizer: {{_name: adam}}
lr_scheduler: {{_name: fixed}}
checkpoint: {{save_dir: {tmp_path}/checkpoints, no_save: true}}
model:
  _name: ofa_nano
  encoder_embed_dim: 32
  decoder_embed_dim: 32
  resnet_width: 8
  split_modalities: true
"""
    )
    command = [
        *[sys.executable, "-m", "fairseq_cli.hydra_train"],
        *["--config-dir", str(tmp_path), "--config-name", "entailment"],
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    logged = done.stdout + done.stderr
    logged += "".join(path.read_text() for path in tmp_path.rglob("*.log"))
    assert "valid_acc" in logged
