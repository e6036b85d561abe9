"""Captioning: data, generation with and without exits, validation."""

import gc
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import task_files as files
import torch
from fairseq.logging import metrics

from ofa_exit.evaluation.captions import score_captions
from ofa_exit.evaluation.table import read_run
from ofa_exit.plugin.errors import UsageError

TASK = "mue_caption"
NEVER = {"image": 1.0, "text": 1.0, "decoder": 1.0}
SIMILARITY = {"image": 0.9, "text": 0.9, "decoder": 0.9}
NO_IMAGE = "bm8gaW1hZ2U="


def similarity(thresholds, **more):
    named = {f"exit_{part}_threshold": value for part, value in thresholds.items()}
    return {"exit_policy": "similarity", **named, **more}


def command(name, *arguments):
    """fairseq-NAME in a process of its own, as the shell starts it."""
    start = f"import sys; sys.argv[0] = 'fairseq-{name}'; import fairseq_cli.{name} as command"
    return subprocess.run(
        [
            *[sys.executable, "-c", f"{start}; command.cli_main()"],
            *[*arguments, "--user-dir", str(Path(__file__).parents[1] / "user_dir")],
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


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
    """Captions at full depth, sentence by sentence."""
    found = files.generate_rows(files.setup(TASK, data), models, batch_size=1)
    assert sorted(found) == list(range(11))
    scores = {round(float(row[0]["score"]), 3) for row in found.values()}
    assert len(scores) == 6  # the model tells the pictures apart
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for number, row in found.items():
        assert [h["tokens"].tolist() for h in row] == [
            h["tokens"].tolist() for h in expected[number]
        ]
        for one, other in zip(row, expected[number]):
            torch.testing.assert_close(one["score"], other["score"], atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------- every row, once


@pytest.mark.parametrize(
    ("task_options", "options"),
    [
        ({}, {"batch_size": 3}),
        ({}, {"batch_size": 32}),
        ({}, {"batch_size": None, "max_tokens": 100}),
        ({}, {"batch_size": 2, "num_workers": 4}),
        (similarity(NEVER), {}),
        (similarity(NEVER, exit_kv="recompute"), {"batch_size": 11}),
        ({"exit_policy": "static", "exit_depths": "6,6,6"}, {}),
    ],
)
def test_every_row_is_captioned_once_and_the_same(data, models, full_depth, task_options, options):
    task = files.setup(TASK, data, **task_options)
    assert_same(files.generate_rows(task, models, **options), full_depth)
    assert task.exit_report.summary()["expected_time_reduction"] == 0


def test_shards_part_the_rows(data, models, full_depth):
    parts = [
        files.generate_rows(files.setup(TASK, data, num_shards=3, shard_id=shard), models)
        for shard in range(3)
    ]
    assert sum(map(len, parts)) == 11
    assert all(parts)
    assert_same({**parts[0], **parts[1], **parts[2]}, full_depth)
    with pytest.raises(ValueError, match="--shard-id 3"):
        files.generate_rows(files.setup(TASK, data, num_shards=3, shard_id=3), models)


def test_ofa_file_lists_and_column_choice_work(data, models, full_depth):
    task = files.setup(TASK, f"{data}/train.tsv,{data}/test.tsv", selected_cols="0,4,2")
    assert_same(files.generate_rows(task, models), full_depth)


# ---------------------------------------------------------------------- generation options


@pytest.mark.parametrize(
    "exits", [{}, similarity(SIMILARITY), similarity(SIMILARITY, exit_kv="recompute")]
)
@pytest.mark.parametrize(
    "options",
    [
        {"beam": 1},
        {"beam": 10, "nbest": 10},
        {"beam": 2, "lenpen": 0.5, "no_repeat_ngram_size": 2, "unnormalized": True},
        {"beam": 3, "nbest": 3, "sampling": True, "sampling_topk": 5},
        {"beam": 3, "prefix_size": 2},
        {"beam": 2, "prefix_size": 9},  # longer than the references: they are forced in full
        {"beam": 2, "max_len_a": 0.5, "max_len_b": 1, "min_len": 2},
        {"beam": 2, "match_source_len": True},
    ],
    ids=str,
)
def test_generation_options_work(data, models, tmp_path, options, exits):
    trace = tmp_path / "trace.json"
    task = files.setup(TASK, data, exit_trace=str(trace), **exits)
    found = files.generate_rows(task, models, max_tokens=None, **options)
    assert sorted(found) == list(range(11))
    task.exit_report.close()
    records = [json.loads(line) for line in trace.read_text().splitlines()]
    assert [record["id"] for record in records] == [f"c{number}" for number in range(11)]
    for number, record in enumerate(records):
        assert len(record["hypotheses"]) == len(found[number]) <= options["beam"]
        for traced, hypothesis in zip(record["hypotheses"], found[number]):
            words = hypothesis["words"].split()
            assert traced["words"] == [*words, "</s>"]
            assert len(traced["layers"]) == len(words) + 1
            if not exits:
                assert set(traced["layers"]) == {6}
            if "prefix_size" in options:
                reference = hypothesis["references"].split("&&")[0].split()
                assert words[: options["prefix_size"]] == reference[: options["prefix_size"]]
            if "max_len_a" in options:
                assert len(words) <= 0.5 * 8 + 1


def test_exits_save_layers_and_do_not_depend_on_the_batch(data, models, tmp_path):
    traces = []
    for size in (1, 4, 11):
        path = tmp_path / str(size)
        task = files.setup(TASK, data, exit_trace=str(path), **similarity(SIMILARITY))
        files.generate_rows(task, models, batch_size=size, max_len_a=0.25, max_len_b=3)
        summary = task.exit_report.summary()
        traces.append(path.read_text())
        assert summary["sentences"] == 11
        assert summary["image_layers"] < 6
        assert summary["text_layers"] < 6
        assert summary["decoder_layers"] < 6
        assert summary["flop_reduction"] > 0
        assert summary["seconds"] > 0
    assert traces[0] == traces[1] == traces[2]


def test_step_limits_are_those_of_the_search_sentence_by_sentence(data, models):
    task = files.setup(TASK, data)
    net_input = {"src_lengths": torch.tensor([8, 3])}
    for options, expected in (
        ({"max_len_b": 6}, [6, 6]),
        ({"max_len_a": 0.5, "max_len_b": 1}, [5, 2]),
        ({"max_len_b": 1000}, [128, 128]),  # the model's positions
        ({"match_source_len": True}, [8, 3]),
    ):
        generator = task.make_generator(models, files.Namespace(**options))
        assert task.step_limits(generator, {"net_input": net_input}).tolist() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"print_alignment": "hard"}, "--print-alignment is not supported"),
        ({"replace_unk": ""}, "--replace-unk is not supported"),
        ({"constraints": "ordered"}, "--constraints is not supported"),
        ({"print_step": True}, "--print-step is not supported"),
        ({"retain_iter_history": True}, "--retain-iter-history is not supported"),
        ({"iter_decode_max_iter": 3}, "--iter-decode-max-iter is not supported"),
        ({"beam_mt": 2}, "--beam-mt is not supported"),
        ({"diverse_beam_groups": 2, "beam": 4}, "--diverse-beam-groups is not supported"),
        ({"score_reference": True}, "leave --exit-policy out"),
    ],
)
def test_options_that_cannot_work_are_refused(data, models, options, message):
    task = files.setup(TASK, data, **similarity(SIMILARITY))
    with pytest.raises(ValueError, match=message):
        files.generate_rows(task, models, **options)


def test_references_can_be_scored(data, models):
    found = files.generate_rows(files.setup(TASK, data), models, score_reference=True)
    assert found[0][0]["words"] == "a red square"


def test_broken_weights_are_told_by_sample(data, checkpoint):
    task = files.setup(TASK, data)
    broken = files.load(task, checkpoint)
    with torch.no_grad():
        broken[0].decoder.layers[0].fc1.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="4 of 4 samples of a batch: c0, c1, c2, c3"):
        files.generate_rows(task, broken)


def test_one_broken_sample_is_named(data, models, monkeypatch):
    task = files.setup(TASK, data)
    collated = files.ofa_exit.plugin.dataset.RowDataset.collater

    def break_third(self, samples):
        batch = collated(self, samples)
        batch["net_input"]["patch_images"][2] = float("inf")
        return batch

    monkeypatch.setattr("ofa_exit.plugin.dataset.RowDataset.collater", break_third)
    with pytest.raises(FloatingPointError, match=r"1 of 4 samples of a batch: c2\. "):
        files.generate_rows(task, models)


# ---------------------------------------------------------------------- rows


def test_printed_references_keep_words_the_model_does_not_know(tmp_path, models):
    folder = files.write_dictionary(tmp_path / "data")
    row = files.caption_row(0)
    row[2] = "a turquoise square&&square && paint"
    files.write_tsv(folder / "test.tsv", [row])
    found = files.generate_rows(files.setup(TASK, folder), models)
    assert found[0][0]["references"] == "a turquoise square && square && paint"


@pytest.mark.parametrize("exits", [{}, similarity(SIMILARITY)])
@pytest.mark.parametrize("workers", [0, 2])
def test_rows_without_picture_and_bad_rows(tmp_path, models, exits, workers):
    folder = files.write_dictionary(tmp_path / "data")
    rows = [files.caption_row(number) for number in range(7)]
    rows[1][4] = ""  # no picture
    rows[2][4] = rows[3][4] = rows[6][4] = NO_IMAGE
    files.write_tsv(folder / "test.tsv", rows)
    options = {"batch_size": 2, "num_workers": workers}
    with pytest.raises(ValueError, match=r"test\.tsv, line 3, field 'image'"):
        files.generate_rows(files.setup(TASK, folder, **exits), models, **options)
    trace = tmp_path / "trace"
    task = files.setup(TASK, folder, skip_bad_rows=True, exit_trace=str(trace), **exits)
    assert sorted(files.generate_rows(task, models, **options)) == [0, 1, 4, 5]
    assert "3 of 7 rows were skipped" in task.dataset("test").rows.summary()[0]
    layers = {
        record["id"]: record["image_layers"]
        for record in map(json.loads, trace.read_text().splitlines())
    }
    assert layers.pop("c1") == 0
    assert min(layers.values()) > 0


def test_validation_tells_which_rows_it_left_out(tmp_path, checkpoint, caplog):
    folder = files.write_dictionary(tmp_path / "data")
    rows = [files.caption_row(number) for number in range(4)]
    rows[2][4] = rows[3][4] = NO_IMAGE
    files.write_tsv(folder / "valid.tsv", rows)
    logger = logging.getLogger("ofa_exit")
    logger.addHandler(caplog.handler)  # the command takes away those of the root
    try:
        files.validate(
            *(folder, checkpoint, "--task", TASK, "--batch-size", "2", "--skip-bad-rows"),
            *("--eval-cider", "--eval-args", '{"beam": 1, "max_len_b": 2}'),
        )
        gc.collect()
    finally:
        logger.removeHandler(caplog.handler)
    assert "valid.tsv: 2 of 4 rows were skipped" in caplog.text


def test_training_rows_are_shuffled_anew_each_epoch_and_none_is_lost(data):
    task = files.setup(TASK, data)
    orders = []
    for epoch in (1, 2, 1):
        task.load_dataset("train", epoch=epoch)
        batches = task.get_batch_iterator(
            task.dataset("train"), max_sentences=5, required_batch_size_multiple=8, epoch=epoch
        ).next_epoch_itr(shuffle=True)
        orders.append([row for batch in batches for row in batch["id"].tolist()])
        assert sorted(orders[-1]) == list(range(12))
    assert orders[0] == orders[2] != orders[1]


# ---------------------------------------------------------------------- fairseq's commands


def test_generate_prints_scores_and_reports(data, checkpoint, full_depth):
    lines = files.generate(
        *(TASK, data, checkpoint, "--batch-size", "3", "--num-workers", "1"),
        *("--scoring", "coco_caption", "--coco-tokenizer", "plain"),
    )
    assert {n: hypotheses[0][1] for n, hypotheses in lines["D"].items()} == {
        number: row[0]["words"] for number, row in full_depth.items()
    }
    assert lines["S"][0] == [["what does the image describe ?"]]
    assert lines["T"][1] == [["a green square && a square of green paint"]]
    assert "(11 captions" in lines["result"]
    assert lines["report"][0] == "Layers and time:"  # right after the result
    assert "mean image layers" in "".join(lines["report"])
    assert json.loads(lines["report"][-1].removeprefix("Exit summary: "))["sentences"] == 11


def test_ensembles_have_a_report_a_model(data, checkpoint, tmp_path):
    state = torch.load(checkpoint)
    for name, weight in state["model"].items():
        if name.startswith("encoder.layers.5"):
            weight.mul_(1.5)
    torch.save(state, tmp_path / "other.pt")
    trace = tmp_path / "trace"
    lines = files.generate(
        *(TASK, data, f"{checkpoint}:{tmp_path / 'other.pt'}", "--exit-trace", str(trace)),
        *("--exit-policy", "similarity", "--exit-image-threshold", "0.9"),
    )
    assert sorted(lines["D"]) == list(range(11))
    assert "Layers and time of model 2 of 2:" in lines["report"]
    assert len(trace.read_text().splitlines()) == 11
    assert len((tmp_path / "trace.2").read_text().splitlines()) == 11


def test_ensembles_average(data, models, full_depth):
    task = files.setup(TASK, data)
    assert_same(files.generate_rows(task, [*models, *models]), full_depth)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--patch-image-size", "48"], "trained with --patch-image-size 32, here it is 48"),
        (["--imagenet-default-mean-and-std"], "trained with --imagenet-default-mean-and-std False"),
        (["--exit-policy", "static", "--exit-depths", "1,1,9"], "6 decoder layers"),
    ],
)
def test_what_the_checkpoint_is_not_is_refused(data, checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        files.generate(TASK, data, checkpoint, *options)


@pytest.mark.parametrize("ensemble", [False, True])
def test_exits_that_a_checkpoint_lacks_are_refused_before_it_is_read(
    data, checkpoint, tmp_path, ensemble
):
    """Of the second checkpoint only the arguments can be read, and there is no dictionary."""
    state = torch.load(checkpoint)
    torch.save({"cfg": state["cfg"], "model": "no weights"}, tmp_path / "arguments.pt")
    path = tmp_path / "arguments.pt"
    options = ["--bpe-dir", "/no/dictionary", "--exit-policy", "similarity"]
    command = (TASK, data, f"{checkpoint}:{path}" if ensemble else path, *options)
    with pytest.raises(UsageError, match="--exit-encoder-threshold is for a joint encoder"):
        files.generate(*command, "--exit-encoder-threshold", "0.9")
    joint = ["--model-overrides", "{'split_modalities': False}"]
    with pytest.raises(UsageError, match="--exit-image-threshold needs a model with --split-mod"):
        files.generate(*command, *joint, "--exit-image-threshold", "0.9")
    with pytest.raises(UsageError, match=r"dict\.txt"):  # what comes next
        files.generate(*command, *joint, "--exit-encoder-threshold", "0.9")
    with pytest.raises(UsageError, match=r"--model-overrides '\{' is no Python dictionary"):
        files.generate(*command, "--model-overrides", "{")


def test_another_image_size_can_be_meant(data, checkpoint):
    lines = files.generate(
        *(TASK, data, checkpoint, "--patch-image-size", "48"),
        *("--model-overrides", "{'patch_image_size': 48}"),
    )
    assert len(lines["D"]) == 11


def test_nonsense_is_refused_before_the_checkpoint_is_read(data):
    with pytest.raises(ValueError, match="--exit-image-threshold"):
        files.generate(
            *(TASK, data, "/no/checkpoint", "--exit-policy", "similarity"),
            *("--exit-image-threshold", "nan"),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": None}, "no data"),
        ({"bpe_dir": "/nowhere"}, r"/nowhere/dict\.txt"),
        ({"num_bins": -1}, "--num-bins -1"),
        ({"max_src_length": 0}, "--max-src-length 0"),
        ({"patch_image_size": 0}, "--patch-image-size 0"),
        ({"eval_cider": True, "eval_args": "{beam: 5}"}, "is not JSON"),
        ({"eval_args": "[5]"}, "JSON object"),
        ({"eval_args": '{"beams": 5}'}, "beams is no generation option"),
        ({"eval_args": '{"print_alignment": "hard"}'}, "--print-alignment"),
        ({"eval_args": '{"prefix_size": 1}'}, "--prefix-size"),
        ({"exit_image_threshold": 0.5}, "without an exit policy"),
    ],
)
def test_nonsense_is_refused_at_once(data, options, message):
    with pytest.raises((ValueError, OSError), match=message):
        files.setup(TASK, options.pop("data", data), **options)


def test_a_generation_that_fails_midway_says_so(tmp_path, checkpoint):
    """By the real command: a line for the error, and no report that looks like the whole."""
    folder = files.write_dictionary(tmp_path / "data")
    rows = [files.caption_row(number) for number in range(7)]
    rows[6][4] = NO_IMAGE
    files.write_tsv(folder / "test.tsv", rows)
    results = tmp_path / "results"
    options = ["--batch-size", "2", "--num-workers", "1", "--results-path", str(results)]
    done = command("generate", *files.generate_arguments(TASK, folder, checkpoint, *options))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"fairseq-generate: error: {folder}/test.tsv, line 7, field 'image'")
    first, *_, summary = done.stdout.splitlines()
    assert first == "INCOMPLETE, 6 of 7 sentences: Layers and time:"
    assert summary.startswith('INCOMPLETE Exit summary: {"sentences": 6,')
    (results / "log.txt").write_text(done.stdout)
    with pytest.raises(ValueError, match="ends before its result"):
        read_run(results)


def test_real_failures_keep_their_traceback_and_no_sentence_makes_no_report(
    data, checkpoint, tmp_path
):
    state = torch.load(checkpoint)
    state["model"]["decoder.layers.0.fc1.weight"].fill_(float("nan"))
    torch.save(state, tmp_path / "broken.pt")
    done = command("generate", *files.generate_arguments(TASK, data, tmp_path / "broken.pt"))
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "FloatingPointError: the model's word scores are not numbers" in done.stderr
    assert "Layers and time" not in done.stdout
    assert "summary" not in done.stdout


def test_the_last_batch_counts_when_it_is_through(data, models, capsys):
    task = files.setup(TASK, data)
    inference = task.generate

    def fail_at_the_end(generator, models, sample, **forced):
        if "c10" in sample["uniq_ids"]:
            raise KeyboardInterrupt
        return inference(generator, models, sample, **forced)

    task.generate = fail_at_the_end
    with pytest.raises(KeyboardInterrupt):
        files.generate_rows(task, models)
    gc.collect()
    assert "INCOMPLETE, 8 of 11 sentences" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--exit-trace", "trace.json"], "--exit-trace 'trace.json': it is fairseq-generate"),
        (["--exit-policy", "similarity"], "Add --eval-cider or --eval-bleu"),
    ],
)
def test_options_of_generation_are_refused_where_nothing_is_generated(
    data, checkpoint, tmp_path, options, message
):
    with pytest.raises(UsageError, match=message):
        files.train(TASK, data, tmp_path, *options)
    with pytest.raises(UsageError, match=message):
        files.validate(data, checkpoint, "--task", TASK, "--batch-size", "2", *options)


# ---------------------------------------------------------------------- validation


def test_validation_metrics_are_those_of_the_split(data, checkpoint, models):
    task = files.setup(TASK, f"{data}/train.tsv,{data}/valid.tsv")
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
