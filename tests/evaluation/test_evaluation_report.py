"""The report of a generation: numbers, table, trace file."""

import json

import pytest
import torch
from helpers.small_models import batch, generate, nano

from ofa_exit.evaluation.efficiency import flops
from ofa_exit.evaluation.efficiency.flops import ModelShape, StemCost
from ofa_exit.evaluation.efficiency.report import GenerationReport
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.runtime.trace import DecoderStep, ExitTrace

SHAPE = ModelShape(
    encoder_dim=4,
    encoder_ffn_dim=8,
    encoder_layers=6,
    decoder_dim=4,
    decoder_ffn_dim=8,
    decoder_layers=4,
    vocabulary=10,
    image_channels=6,
    split=True,
)
SIZE = (32, 48)


def stem_cost(size):
    return StemCost(size[0] * size[1], size[0] * size[1] // 256)


def trace():
    """Two sentences, two hypotheses each: [5, 2] and [6, 2]; [7, 2] and [8, 2]."""
    first = torch.tensor([[0]] * 4)
    second = torch.tensor([[0, 5], [0, 6], [0, 7], [0, 8]])
    sentence = torch.tensor([0, 0, 1, 1])
    none, once = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.long)

    def step(tokens, layers, ran, repaid):
        layers, ran = torch.tensor(layers)[:, None], torch.tensor(ran)
        return DecoderStep(tokens, sentence, layers, ran, repaid, once)

    return ExitTrace(
        torch.tensor([2, 0]),
        torch.tensor([4, 6]),
        [
            step(first, [1, 1, 4, 4], [1, 1, 4, 4], none),
            step(second, [3, 2, 4, 1], [3, 3, 4, 4], torch.tensor([2, 2, 0, 0])),
        ],
    )


HYPOTHESES = [[[6, 2], [5, 2]], [[7, 2], [8, 2]]]


def add(report, **changes):
    options = {
        "ids": ["a", "b"],
        "trace": trace(),
        "hypotheses": HYPOTHESES,
        "text_tokens": [3, 5],
        "image_size": SIZE,
        "seconds": 0.5,
    }
    report.add(**{**options, **changes})


def test_summary_by_hand():
    report = GenerationReport(SHAPE, stem_cost)
    add(report)
    values = report.summary()
    calls = flops.trace_calls(trace())
    counts = flops.batch_flops(SHAPE, stem_cost(SIZE), [2, 0], [4, 6], [3, 5], calls)
    # Best hypotheses: [6, 2] at layers 1 and 2, [7, 2] at 4 and 4.
    assert values["sentences"] == 2 and values["words"] == 4
    assert (values["image_layers"], values["text_layers"], values["decoder_layers"]) == (2, 5, 2.75)
    assert values["expected_time_reduction"] == pytest.approx(
        ((1 - (3 / 6 + 1.5 / 4) / 2) + (1 - (6 / 6 + 4 / 4) / 2)) / 2
    )
    biases = (
        flops.encoder_biases(SHAPE, 6, 5)
        + flops.decoder_self_bias(SHAPE, 2)
        + flops.decoder_cross_bias(SHAPE, 2, 6 + 5)
    )
    executed = sum(counts.executed.values()) + biases
    full = sum(counts.full.values()) + biases
    assert values["flop_reduction"] == pytest.approx(1 - executed / full)
    assert values["gflops_per_sentence"] == pytest.approx(executed / 2e9)
    assert values["gflops_full_per_sentence"] == pytest.approx(full / 2e9)
    assert values["seconds_per_sentence"] == 0.25


def test_batches_add_up():
    report, twice = GenerationReport(SHAPE, stem_cost), GenerationReport(SHAPE, stem_cost)
    add(report)
    add(twice)
    add(twice, ids=["c", "d"], seconds=1.5)
    once, both = report.summary(), twice.summary()
    assert both["sentences"] == 4 and both["seconds"] == 2
    assert both["expected_time_reduction"] == once["expected_time_reduction"]
    # Biases of the shape are made once, so the second batch costs a little less.
    saved = (
        flops.encoder_biases(SHAPE, 6, 5)
        + flops.decoder_self_bias(SHAPE, 2)
        + flops.decoder_cross_bias(SHAPE, 2, 6 + 5)
    )
    assert both["gflops_per_sentence"] * 4e9 == pytest.approx(
        2 * once["gflops_per_sentence"] * 2e9 - saved
    )


def test_without_a_trace_everything_ran():
    report = GenerationReport(SHAPE, stem_cost)
    add(report, trace=None)
    values = report.summary()
    assert (values["image_layers"], values["text_layers"], values["decoder_layers"]) == (6, 6, 4)
    assert values["expected_time_reduction"] == 0 and values["flop_reduction"] == 0
    assert values["gflops_per_sentence"] is None
    assert "GFLOPs" not in report.table()


def test_without_a_trace_a_missing_picture_ran_nothing(tmp_path):
    path = tmp_path / "trace.jsonl"
    report = GenerationReport(SHAPE, stem_cost, trace_file=path)
    add(report, trace=None, pictures=[True, False])
    assert [json.loads(line)["image_layers"] for line in path.read_text().splitlines()] == [6, 0]
    assert report.summary()["expected_time_reduction"] == 0


def test_table():
    report = GenerationReport(SHAPE, stem_cost)
    add(report, trace=None, image_size=None)
    lines = report.table().splitlines()
    assert lines[0].split() == ["sentences", "2"]
    assert {line.index(line.split("  ")[-1].strip()) for line in lines} == {
        len("words of the best hypotheses") + 2
    }
    assert "mean image layers             none in this run" in lines
    assert "mean decoder layers           4.00 of 4" in lines
    add(report)
    assert "GFLOPs a sentence" in report.table()


def test_an_empty_run_says_so(tmp_path):
    with GenerationReport(SHAPE, stem_cost, trace_file=tmp_path / "trace.jsonl") as report:
        assert "no sentence was generated" in report.table()
        assert report.summary()["sentences"] == 0
        assert report.summary()["flop_reduction"] is None
    assert (tmp_path / "trace.jsonl").read_bytes() == b""


def test_trace_file(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text("of an earlier run\n")
    report = GenerationReport(SHAPE, stem_cost, trace_file=path, symbol=lambda i: f"wörd{i}")
    add(report)
    # Before it is closed: a run that is killed here keeps what is done.
    first, second = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert first == {
        "id": "a",
        "image_layers": 2,
        "text_layers": 4,
        "hypotheses": [
            {"tokens": [6, 2], "layers": [1, 2], "words": ["wörd6", "wörd2"]},
            {"tokens": [5, 2], "layers": [1, 3], "words": ["wörd5", "wörd2"]},
        ],
    }
    assert second["image_layers"] == 0
    add(report, ids=[7, 8])
    report.close()
    report.close()
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "b", 7, 8]
    with pytest.raises(ValueError, match="closed already"):
        add(report)


def test_refusals(tmp_path):
    with pytest.raises(OSError, match="--exit-trace needs a file name in a folder that exists"):
        GenerationReport(SHAPE, stem_cost, trace_file=tmp_path / "no" / "trace.jsonl")
    with pytest.raises(ValueError, match="choose one of propagate, recompute"):
        GenerationReport(SHAPE, stem_cost, kv="both")
    report = GenerationReport(SHAPE, stem_cost)
    with pytest.raises(ValueError, match="1 ids, 2 lists of hypotheses and 2 source lengths"):
        add(report, ids=["a"])
    with pytest.raises(ValueError, match="sentence b has no hypothesis"):
        add(report, hypotheses=[HYPOTHESES[0], []])
    with pytest.raises(ValueError, match="trace is of 2 sentences, the batch of 1"):
        add(report, ids=["a"], hypotheses=HYPOTHESES[:1], text_tokens=[3])
    assert report.summary()["sentences"] == 0


def test_a_generation_of_the_model(tmp_path):
    model = nano()
    model.configure_exits(SimilarityExit(0.9, 0.9, 0.9, decoder_threshold=0.9, schedule="static"))
    net_input = batch(3)
    hypos = generate(model, net_input, steps=4)
    path = tmp_path / "trace.jsonl"
    with GenerationReport.for_model(model, trace_file=path) as report:
        report.add(
            ids=["x", "y", "z"],
            trace=model.last_trace,
            hypotheses=[[h["tokens"].tolist() for h in of_sentence] for of_sentence in hypos],
            text_tokens=net_input["src_lengths"].tolist(),
            image_size=tuple(net_input["patch_images"].shape[-2:]),
            seconds=0.1,
        )
    values = report.summary()
    assert 0 < values["flop_reduction"] < 1
    assert 0 < values["expected_time_reduction"] < 1
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["image_layers"] for line in lines] == model.last_trace.image_layers.tolist()
    assert lines[2]["image_layers"] == 0
    for line, of_sentence in zip(lines, hypos, strict=True):
        assert len(line["hypotheses"]) == len(of_sentence)
        assert all(len(h["tokens"]) == len(h["layers"]) for h in line["hypotheses"])
