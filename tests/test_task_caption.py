"""Captioning through fairseq's own commands."""

import json
import logging

import pytest
import task_files as files
import torch
from fairseq.logging import metrics

from ofa_exit.evaluation.captions import score_captions

TASK = "mue_caption"
SIMILARITY = [
    *["--exit-policy", "similarity", "--exit-image-threshold", "0.9"],
    *["--exit-text-threshold", "0.9", "--exit-decoder-threshold", "0.9"],
]

NEVER = [
    *["--exit-policy", "similarity", "--exit-image-threshold", "1"],
    *["--exit-text-threshold", "1", "--exit-decoder-threshold", "1"],
]


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
def other_checkpoint(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        folder = tmp_path_factory.mktemp("other")
        return files.train(TASK, data, folder, "--disable-validation", "--seed", "5", updates=4)


def best(lines):
    """Words and score of the best hypotheses; scores tell apart what has the same words."""
    return {number: hypotheses[0][1] for number, hypotheses in lines["D"].items()}, {
        number: pytest.approx(float(hypotheses[0][0]), abs=1e-4)
        for number, hypotheses in lines["H"].items()
    }


# ---------------------------------------------------------------------- every row, once


@pytest.fixture(scope="module")
def reference(data, checkpoint):
    """Captions at full depth, sentence by sentence."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        found = best(files.generate(TASK, data, checkpoint, "--batch-size", "1"))
    words, scores = found
    assert len(words) == 11
    assert len({round(score.expected, 3) for score in scores.values()}) == 6  # one a picture
    return found


@pytest.mark.parametrize(
    "options",
    [
        ["--batch-size", "3"],
        ["--batch-size", "32"],
        ["--max-tokens", "100"],
        ["--batch-size", "2", "--num-workers", "4"],
        ["--required-batch-size-multiple", "1"],
        NEVER,
        ["--exit-policy", "static", "--exit-depths", "6,6,6"],
    ],
    ids=" ".join,
)
def test_every_row_is_captioned_once_and_the_same(data, checkpoint, reference, options):
    lines = files.generate(TASK, data, checkpoint, *options)
    assert all(len(hypotheses) == 1 for hypotheses in lines["D"].values())
    assert best(lines) == reference
    assert (
        "(11 captions"
        in files.generate(
            TASK, data, checkpoint, "--scoring", "coco_caption", "--coco-tokenizer", "plain"
        )["result"]
    )


def test_shards_part_the_rows(data, checkpoint, reference):
    words, scores = {}, {}
    for shard in ("0", "1"):
        lines = files.generate(
            *(TASK, data, checkpoint, "--batch-size", "2"),
            *("--num-shards", "2", "--shard-id", shard),
        )
        assert lines["D"]
        assert not words.keys() & lines["D"].keys()
        words.update(best(lines)[0])
        scores.update(best(lines)[1])
    assert (words, scores) == reference
    with pytest.raises(ValueError, match="--shard-id 2"):
        files.generate(TASK, data, checkpoint, "--num-shards", "2", "--shard-id", "2")


# ---------------------------------------------------------------------- generation options


@pytest.mark.parametrize("exits", [[], SIMILARITY, [*SIMILARITY, "--exit-kv", "recompute"]])
@pytest.mark.parametrize(
    "options",
    [
        ["--beam", "1"],
        ["--beam", "10", "--nbest", "10"],
        ["--beam", "2", "--lenpen", "0.5", "--no-repeat-ngram-size", "2"],
        ["--sampling", "--beam", "3", "--nbest", "3", "--sampling-topk", "5"],
        ["--prefix-size", "2", "--beam", "3"],
        ["--max-len-a", "0.5", "--max-len-b", "1", "--beam", "2", "--min-len", "2"],
        ["--match-source-len", "--beam", "2"],
    ],
    ids=" ".join,
)
def test_generation_options_work(data, checkpoint, tmp_path, options, exits):
    trace = tmp_path / "trace.json"
    lines = files.generate(*(TASK, data, checkpoint, *options, *exits, "--exit-trace", str(trace)))
    nbest = int(options[options.index("--nbest") + 1]) if "--nbest" in options else 1
    assert sorted(lines["D"]) == list(range(11))
    assert all(len(hypotheses) == nbest for hypotheses in lines["D"].values())
    records = [json.loads(line) for line in trace.read_text().splitlines()]
    assert [record["id"] for record in records] == [f"c{number}" for number in range(11)]
    for number, record in enumerate(records):
        words = record["hypotheses"][0]["words"]
        assert lines["H"][number][0][1].split() == words[:-1]
        assert len(record["hypotheses"][0]["layers"]) == len(words)
        if not exits:
            assert set(record["hypotheses"][0]["layers"]) == {6}
        if "--prefix-size" in options:  # of the first reference
            assert words[:2] == lines["T"][number][0][0].split()[:2]


def test_exits_save_layers(caplog, data, checkpoint):
    with caplog.at_level(logging.INFO, "ofa_exit"):
        files.generate(TASK, data, checkpoint, *SIMILARITY)
    (summary,) = [
        json.loads(record.getMessage().split(": ", 1)[1])
        for record in caplog.records
        if record.getMessage().startswith("exit summary")
    ]
    assert summary["sentences"] == 11
    assert summary["image_layers"] < 6
    assert summary["text_layers"] < 6
    assert summary["expected_time_reduction"] > 0
    assert summary["flop_reduction"] > 0
    assert summary["seconds"] > 0
    assert "mean image layers" in caplog.text


def test_exits_do_not_depend_on_the_batch(data, checkpoint, tmp_path):
    traces = []
    for size in ("1", "11"):
        path = tmp_path / size
        files.generate(
            *(TASK, data, checkpoint, *SIMILARITY, "--batch-size", size),
            *("--exit-trace", str(path)),
        )
        traces.append(path.read_text())
    assert traces[0] == traces[1]


def test_ensembles_have_a_report_a_model(caplog, data, checkpoint, other_checkpoint, tmp_path):
    trace = tmp_path / "trace"
    paths = f"{checkpoint}:{other_checkpoint}"
    with caplog.at_level(logging.INFO, "ofa_exit"):
        lines = files.generate(TASK, data, paths, *SIMILARITY, "--exit-trace", str(trace))
    assert sorted(lines["D"]) == list(range(11))
    assert "by model 2 of 2" in caplog.text
    assert len(trace.read_text().splitlines()) == 11
    assert len((tmp_path / "trace.2").read_text().splitlines()) == 11
    alone = [files.generate(TASK, data, path)["H"] for path in (checkpoint, other_checkpoint)]
    together = files.generate(TASK, data, paths)["H"]
    assert together != alone[0]
    assert together != alone[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--print-alignment"], "--print-alignment is not supported"),
        (["--constraints"], "--constraints is not supported"),
        (["--print-step"], "--print-step is not supported"),
        (["--diverse-beam-groups", "2", "--beam", "4"], "--diverse-beam-groups is not supported"),
        (["--score-reference", *SIMILARITY], "leave --exit-policy out"),
        (["--exit-image-threshold", "0.5"], "without an exit policy"),
        (["--exit-policy", "static", "--exit-depths", "1,1,9"], "6 decoder layers"),
        (["--exit-policy", "similarity", "--exit-encoder-threshold", "0.5"], "joint encoder"),
        (["--patch-image-size", "48"], "trained with --patch-image-size 32, here it is 48"),
        (["--imagenet-default-mean-and-std"], "trained with --imagenet-default-mean-and-std False"),
        (["--gen-subset", "test_artist"], r"no test_artist\.tsv"),
        (["--bpe-dir", "/nowhere"], "dict.txt"),
        (["--num-bins", "-1"], "--num-bins -1"),
        (["--max-src-length", "0"], "--max-src-length 0"),
    ],
)
def test_what_cannot_be_done_is_refused(data, checkpoint, options, message):
    with pytest.raises((ValueError, OSError), match=message):
        files.generate(TASK, data, checkpoint, *options)


def test_nonsense_is_refused_before_the_checkpoint_is_read(data):
    with pytest.raises(ValueError, match="--exit-image-threshold"):
        files.generate(
            *(TASK, data, "/no/checkpoint", "--exit-policy", "similarity"),
            *("--exit-image-threshold", "nan"),
        )


def test_another_image_size_can_be_meant(data, checkpoint):
    lines = files.generate(
        *(TASK, data, checkpoint, "--patch-image-size", "48"),
        *("--model-overrides", "{'patch_image_size': 48}"),
    )
    assert len(lines["D"]) == 11


def test_references_can_be_scored(data, checkpoint):
    lines = files.generate(TASK, data, checkpoint, "--score-reference")
    assert best(lines)[0][0] == "a red square"


def test_broken_weights_are_told_by_sample(data, checkpoint, tmp_path):
    state = torch.load(checkpoint)
    state["model"]["decoder.layers.0.fc1.weight"][:] = float("nan")
    torch.save(state, tmp_path / "broken.pt")
    with pytest.raises(FloatingPointError, match="4 of 4 samples of a batch: c0, c1, c2, c3"):
        files.generate(TASK, data, tmp_path / "broken.pt")


# ---------------------------------------------------------------------- rows


def test_printed_references_keep_words_the_model_does_not_know(tmp_path, checkpoint):
    folder = files.write_dictionary(tmp_path / "data")
    row = files.caption_row(0)
    row[2] = "a turquoise square&&square && paint"
    files.write_tsv(folder / "test.tsv", [row])
    lines = files.generate(TASK, folder, checkpoint)
    assert lines["T"][0] == [["a turquoise square && square && paint"]]


def test_rows_without_picture_and_bad_rows(caplog, tmp_path, checkpoint):
    folder = files.write_dictionary(tmp_path / "data")
    rows = [files.caption_row(number) for number in range(6)]
    rows[1][4] = ""  # no picture
    rows[4][4] = "bm8gaW1hZ2U="  # not a picture
    files.write_tsv(folder / "test.tsv", rows)
    trace = tmp_path / "trace"
    with pytest.raises(ValueError, match=r"test\.tsv, line 5, field 'image'"):
        files.generate(TASK, folder, checkpoint)
    for options in ([], SIMILARITY):
        with caplog.at_level(logging.WARNING, "ofa_exit"):
            lines = files.generate(
                *(TASK, folder, checkpoint, "--skip-bad-rows", "--batch-size", "2"),
                *("--exit-trace", str(trace), *options),
            )
        assert sorted(lines["D"]) == [0, 1, 2, 3, 5]
        assert "1 of 6 rows were skipped" in caplog.text
        caplog.clear()
        layers = {
            record["id"]: record["image_layers"]
            for record in map(json.loads, trace.read_text().splitlines())
        }
        assert layers.pop("c1") == 0
        assert min(layers.values()) > 0


def test_a_batch_of_bad_rows_alone_is_passed_over(tmp_path, checkpoint):
    folder = files.write_dictionary(tmp_path / "data")
    rows = [files.caption_row(number) for number in range(4)]
    rows[0][4] = rows[1][4] = "bm8gaW1hZ2U="
    files.write_tsv(folder / "test.tsv", rows)
    lines = files.generate(TASK, folder, checkpoint, "--skip-bad-rows", "--batch-size", "2")
    assert sorted(lines["D"]) == [2, 3]


def test_ofa_file_lists_work(data, checkpoint, reference):
    files_given = f"{data}/train.tsv,{data}/test.tsv"
    lines = files.generate(TASK, files_given, checkpoint, "--selected-cols", "0,4,2", "--beam", "5")
    assert best(lines) == reference


# ---------------------------------------------------------------------- training and validation


def test_validation_metrics_are_those_of_the_split(data, checkpoint):
    lines = files.generate(
        *(TASK, data, checkpoint, "--gen-subset", "valid", "--beam", "2"),
    )
    references = [
        row.split("\t")[2].split("&&") for row in (data / "valid.tsv").read_text().splitlines()
    ]
    hypotheses = [best(lines)[0][number] for number in range(9)]
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
    assert values["cider"] > 0


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
    best_checkpoint = torch.load(save_dir / "checkpoint_best.pt")
    assert state["extra_state"]["best"] == best_checkpoint["extra_state"]["best"]
    assert state["cfg"]["task"]["patch_image_size"] == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--eval-args", "{beam: 5}"], "is not JSON"),
        (["--eval-args", "[5]"], "JSON object"),
        (["--eval-args", '{"beams": 5}'], "beams is no generation option"),
        (["--eval-args", '{"print_alignment": "hard"}'], "--print-alignment"),
    ],
)
def test_evaluation_arguments_are_checked(data, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        files.train(TASK, data, tmp_path, "--eval-cider", *options)
