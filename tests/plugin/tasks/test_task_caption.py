"""Captioning: data, and generation with and without exits."""

import json

import pytest
import torch
from helpers import caption_task
from helpers import task_files as files
from helpers.caption_task import NEVER, NO_IMAGE, SIMILARITY, TASK, assert_same, similarity

from ofa_exit.plugin.tasks.dataset import RowDataset

# Fixtures.
data, checkpoint = caption_task.data, caption_task.checkpoint
models, full_depth = caption_task.models, caption_task.full_depth

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
def test_every_row_is_captioned_once_with_the_same_result(
    data, models, full_depth, task_options, options
):
    task = files.setup(TASK, data, **task_options)
    assert_same(files.generate_rows(task, models, **options), full_depth)
    assert task.exit_reports[0].summary()["expected_time_reduction"] == 0


def test_shards_split_the_rows(data, models, full_depth):
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
    task.exit_reports[0].close()
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
        summary = task.exit_reports[0].summary()
        traces.append(path.read_text())
        assert summary["sentences"] == 11
        assert summary["image_layers"] < 6
        assert summary["text_layers"] < 6
        assert summary["decoder_layers"] < 6
        assert summary["flop_reduction"] > 0
        assert summary["seconds"] > 0
    assert traces[0] == traces[1] == traces[2]


def test_step_limits_follow_the_search_per_sentence(data, models):
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
        ({"score_reference": True}, "--score-reference.*--exit-policy"),
    ],
)
def test_unsupported_options_are_rejected(data, models, options, message):
    task = files.setup(TASK, data, **similarity(SIMILARITY))
    with pytest.raises(ValueError, match=message):
        files.generate_rows(task, models, **options)


def test_references_can_be_scored(data, models):
    found = files.generate_rows(files.setup(TASK, data), models, score_reference=True)
    assert found[0][0]["words"] == "a red square"


def test_nan_weights_are_reported_by_sample(data, checkpoint):
    task = files.setup(TASK, data)
    broken = files.load(task, checkpoint)
    with torch.no_grad():
        broken[0].decoder.layers[0].fc1.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"NaN for 4 of 4 .* c0, c1, c2, c3"):
        files.generate_rows(task, broken)


def test_a_single_nan_sample_is_named(data, models, monkeypatch):
    task = files.setup(TASK, data)
    collated = RowDataset.collater

    def break_third(self, samples):
        batch = collated(self, samples)
        batch["net_input"]["patch_images"][2] = float("inf")
        return batch

    monkeypatch.setattr(RowDataset, "collater", break_third)
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
def test_rows_without_image_and_bad_rows(tmp_path, models, exits, workers):
    folder = files.write_dictionary(tmp_path / "data")
    rows = [files.caption_row(number) for number in range(7)]
    rows[1][4] = ""  # no image
    rows[2][4] = rows[3][4] = rows[6][4] = NO_IMAGE
    files.write_tsv(folder / "test.tsv", rows)
    options = {"batch_size": 2, "num_workers": workers}
    with pytest.raises(ValueError, match=r"test\.tsv.*(line |:)3\b.*image"):
        files.generate_rows(files.setup(TASK, folder, **exits), models, **options)
    trace = tmp_path / "trace"
    task = files.setup(TASK, folder, skip_bad_rows=True, exit_trace=str(trace), **exits)
    assert sorted(files.generate_rows(task, models, **options)) == [0, 1, 4, 5]
    assert "3 of 7 rows" in task.dataset("test").rows.summary()[0]
    task.end_generation()  # the last batch holds no usable row
    layers = {
        record["id"]: record["image_layers"]
        for record in map(json.loads, trace.read_text().splitlines())
    }
    assert layers.pop("c1") == 0
    assert min(layers.values()) > 0


def test_training_rows_are_shuffled_each_epoch_and_none_is_lost(data):
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
