"""The report of a generation: numbers, table, trace file."""

import json
from functools import partial

import pytest
import torch
from helpers.small_models import batch, generate, nano

from ofa_exit.evaluation.efficiency.report import GenerationReport
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.runtime.flops import Work
from ofa_exit.runtime.trace import DecoderStep, ExitTrace

SIZE = (32, 48)  # 2·3 image tokens


@pytest.fixture(scope="module")
def model():
    """6 encoder layers and 4 decoder layers."""
    return nano(decoder_layers=4)


def trace(model):
    """Two sentences, two hypotheses each: [5, 2] and [6, 2]; [7, 2] and [8, 2]."""
    first = torch.tensor([[0]] * 4)
    second = torch.tensor([[0, 5], [0, 6], [0, 7], [0, 8]])
    layer = model.decoder.layer(1)

    def step(tokens, layers_used, layers_run, filled, crossed):
        keys = tokens.size(1)
        price = partial(layer.flops, keys)
        work = [
            Work("decoder", price, [2 * layers for layers in layers_run]),
            Work("cross_kv", layer.cross_kv_flops, crossed),
            Work("skipped_kv", lambda source: layer.self_kv_flops(), [2 * one for one in filled]),
        ]
        full = [Work("decoder", price, [2 * 4] * 2)]
        if keys == 1:
            full.append(Work("cross_kv", layer.cross_kv_flops, [4, 4]))
        run, filled = (torch.tensor(row).repeat_interleave(2) for row in (layers_run, filled))
        used, sentence = torch.tensor(layers_used)[:, None], torch.tensor([0, 0, 1, 1])
        made = DecoderStep(tokens, sentence, used, run, filled, keys, work, full)
        made.score_words(model.decoder.word_flops(), [2, 2])
        return made

    image, text, tokens = torch.tensor([2, 0]), torch.tensor([4, 6]), torch.tensor([3, 5])
    height, width = SIZE
    price, encoder = model.encoder.layers[0].flops, len(model.encoder.layers)
    stem = Work("stem", lambda _: model.encoder.image_flops(height, width), [1, 0])
    cells, full = torch.tensor([6, 6]), torch.full_like(text, encoder)
    return ExitTrace(
        image,
        text,
        tokens + torch.tensor([6, 0]),
        [stem, Work("encoder", price, image, cells), Work("encoder", price, text, tokens)],
        [
            stem,
            Work("encoder", price, [encoder, 0], cells),
            Work("encoder", price, full, tokens),
        ],
        [
            step(first, [1, 1, 4, 4], [1, 4], [0, 0], [1, 4]),
            step(second, [3, 2, 4, 1], [3, 4], [2, 0], [2, 0]),
        ],
    )


def bias_flops(model):
    """Biases of 6 image tokens, 5 text tokens and 2 target positions."""
    encoder = sum(model.encoder.bias_flops(6, 5).values())
    decoder = model.decoder
    return encoder + decoder.self_bias_flops(2) + decoder.cross_bias_flops(2, 6 + 5)


HYPOTHESES = [[[6, 2], [5, 2]], [[7, 2], [8, 2]]]


def add(report, **changes):
    options = {
        "ids": ["a", "b"],
        "trace": trace(report.model),
        "hypotheses": HYPOTHESES,
        "text_tokens": [3, 5],
        "image_size": SIZE,
        "seconds": 0.5,
    }
    report.add(**{**options, **changes})


def test_summary_by_hand(model):
    report = GenerationReport(model)
    add(report)
    values = report.summary()
    # Best hypotheses: [6, 2] at layers 1 and 2, [7, 2] at 4 and 4.
    assert values["sentences"] == 2 and values["words"] == 4
    assert (values["image_layers"], values["text_layers"], values["decoder_layers"]) == (2, 5, 2.75)
    assert values["expected_time_reduction"] == pytest.approx(
        ((1 - (3 / 6 + 1.5 / 4) / 2) + (1 - (6 / 6 + 4 / 4) / 2)) / 2
    )
    # Sources: 6 image and 3 text tokens; 5 text tokens.
    encoder, layer = model.encoder.layers[0].flops, model.decoder.layer(1)
    shared = model.encoder.image_flops(*SIZE) + bias_flops(model)
    shared += 2 * 2 * 2 * model.decoder.word_flops()
    executed = (
        shared
        + (2 * encoder(6) + 4 * encoder(3))
        + 6 * encoder(5)
        + 2 * (1 * layer.flops(1, 9) + 4 * layer.flops(1, 5))
        + 2 * (3 * layer.flops(2, 9) + 4 * layer.flops(2, 5))
        + 3 * layer.cross_kv_flops(9)
        + 4 * layer.cross_kv_flops(5)
        + 2 * 2 * layer.self_kv_flops()
    )
    full = (
        shared
        + 6 * (encoder(6) + encoder(3) + encoder(5))
        + 2 * 4 * (layer.flops(1, 9) + layer.flops(1, 5) + layer.flops(2, 9) + layer.flops(2, 5))
        + 4 * (layer.cross_kv_flops(9) + layer.cross_kv_flops(5))
    )
    assert values["flop_reduction"] == pytest.approx(1 - executed / full)
    assert values["gflops_per_sentence"] == pytest.approx(executed / 2e9)
    assert values["gflops_full_per_sentence"] == pytest.approx(full / 2e9)
    assert values["seconds_per_sentence"] == 0.25


def test_batches_add_up(model):
    report, twice = GenerationReport(model), GenerationReport(model)
    add(report)
    add(twice)
    add(twice, ids=["c", "d"], seconds=1.5)
    once, both = report.summary(), twice.summary()
    assert both["sentences"] == 4 and both["seconds"] == 2
    assert both["expected_time_reduction"] == once["expected_time_reduction"]
    # Biases of the shape are made once, so the second batch costs a little less.
    assert both["gflops_per_sentence"] * 4e9 == pytest.approx(
        2 * once["gflops_per_sentence"] * 2e9 - bias_flops(model)
    )


def test_a_text_is_a_prompt_where_all_sentences_have_it(model):
    def has_prompt(*batches, of=model):
        report = GenerationReport(of)
        for keys in batches:
            add(report, text_keys=keys)
        return "expected_time_reduction_without_prompt" in report.summary()

    assert has_prompt(["a", "a"]) and has_prompt(["a", "a"], ["a", "a"])
    assert not has_prompt(["a", "b"]) and not has_prompt(["a", "a"], ["b", "b"])
    assert not has_prompt(None) and not has_prompt(["a", "a"], None)
    # A joint encoder runs the text with the image.
    assert not has_prompt(["a", "a"], of=nano(split=False, decoder_layers=4))


def test_without_a_trace_everything_ran(model):
    report = GenerationReport(model)
    add(report, trace=None)
    values = report.summary()
    assert (values["image_layers"], values["text_layers"], values["decoder_layers"]) == (6, 6, 4)
    assert values["expected_time_reduction"] == 0 and values["flop_reduction"] == 0
    assert values["gflops_per_sentence"] is None
    assert "GFLOPs" not in report.table()


def test_without_a_trace_a_missing_image_ran_nothing(model, tmp_path):
    path = tmp_path / "trace.jsonl"
    report = GenerationReport(model, trace_file=path)
    add(report, trace=None, has_image=[True, False])
    assert [json.loads(line)["image_layers"] for line in path.read_text().splitlines()] == [6, 0]
    assert report.summary()["expected_time_reduction"] == 0


def test_table(model):
    report = GenerationReport(model)
    add(report, trace=None, image_size=None)
    lines = report.table().splitlines()
    assert lines[0].split() == ["sentences", "2"]
    assert {line.index(line.split("  ")[-1].strip()) for line in lines} == {
        len("words of the best hypotheses") + 2
    }
    assert "mean image layers             none in this run" in lines
    assert "mean decoder layers           4.00 of 4" in lines
    add(report)
    assert "GFLOPs per sentence" in report.table()


def test_an_empty_run_says_so(model, tmp_path):
    report = GenerationReport(model, trace_file=tmp_path / "trace.jsonl")
    assert "no sentence was generated" in report.table()
    assert report.summary()["sentences"] == 0
    assert report.summary()["flop_reduction"] is None
    report.close()
    assert (tmp_path / "trace.jsonl").read_bytes() == b""


def test_trace_file(model, tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text("an earlier run\n")
    report = GenerationReport(model, trace_file=path, symbol=lambda i: f"wörd{i}")
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
    with pytest.raises(ValueError, match="closed"):
        add(report)


def test_misfits_are_rejected(model, tmp_path):
    with pytest.raises(OSError, match=r"no/trace\.jsonl.*--exit-trace"):
        GenerationReport(model, trace_file=tmp_path / "no" / "trace.jsonl")
    report = GenerationReport(model)
    with pytest.raises(ValueError, match=r"1 ids, 2 .*hypotheses and 2 source"):
        add(report, ids=["a"])
    with pytest.raises(ValueError, match=r"sentence b\b.*hypothesis"):
        add(report, hypotheses=[HYPOTHESES[0], []])
    with pytest.raises(ValueError, match=r"trace.*2 sentences.*batch.*1"):
        add(report, ids=["a"], hypotheses=HYPOTHESES[:1], text_tokens=[3])
    assert report.summary()["sentences"] == 0


def test_a_generation_of_the_model(tmp_path):
    model = nano()
    model.configure_exits(SimilarityExit(0.9, 0.9, 0.9, decoder_threshold=0.9, schedule="static"))
    net_input = batch(3)
    hypos = generate(model, net_input, steps=4)
    path = tmp_path / "trace.jsonl"
    report = GenerationReport(model, trace_file=path)
    report.add(
        ids=["x", "y", "z"],
        trace=model.last_trace,
        hypotheses=[[h["tokens"].tolist() for h in hyps] for hyps in hypos],
        text_tokens=net_input["src_lengths"].tolist(),
        image_size=tuple(net_input["patch_images"].shape[-2:]),
        seconds=0.1,
    )
    report.close()
    values = report.summary()
    assert 0 < values["flop_reduction"] < 1
    assert 0 < values["expected_time_reduction"] < 1
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["image_layers"] for line in lines] == model.last_trace.image_layers.tolist()
    assert lines[2]["image_layers"] == 0
    for line, hyps in zip(lines, hypos, strict=True):
        assert len(line["hypotheses"]) == len(hyps)
        assert all(len(h["tokens"]) == len(h["layers"]) for h in line["hypotheses"])
