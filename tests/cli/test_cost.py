"""Cost of training and answering, counted without running them."""

import itertools
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from helpers.flop_counts import counted
from torch.nn.attention import SDPBackend, sdpa_kernel

from ofa_exit.cli.cost import counted as cost
from ofa_exit.cli.cost import datasets, main, measured
from ofa_exit.evaluation.efficiency.flops import bias_costs
from ofa_exit.models.archs import ARCHS
from ofa_exit.models.ofa import OFAModel
from ofa_exit.prepare import coco, gqa, nocaps, okvqa, snli_ve, visdial, vizwiz, vqa
from ofa_exit.testing import build_dictionary

LENGTHS = cost.Lengths(size=32, source=6, target=5)
LAYERS = 2  # of encoder and decoder


@pytest.fixture(autouse=True)
def few_layers(monkeypatch):
    """Counting visits every operation: fewer layers take a third of the time."""
    layers = {"encoder_layers": LAYERS, "decoder_layers": LAYERS}
    monkeypatch.setitem(ARCHS, "ofa_nano", {**ARCHS["ofa_nano"], **layers})


@pytest.mark.parametrize("lengths", [LENGTHS, replace(LENGTHS, prompt=2, captions=3)])
def test_a_step_is_counted_as_a_real_one(lengths):
    model = cost.build("ofa_nano")
    task = Namespace(target_dictionary=build_dictionary(cost.VOCABULARY))
    arguments = Namespace(**ARCHS["ofa_nano"], split_modalities=True)
    real = OFAModel.build_model(arguments, task).train()
    for rows in (1, 2):
        counted = cost.step_cost(model.train(), rows, lengths, "uniform")
        # Fused attention kernels compute weights again in the backward pass, which math does not.
        with sdpa_kernel(SDPBackend.MATH):
            found = cost.step_cost(real, rows, lengths, "uniform")
        assert (counted.forward, counted.training) == (found.forward, found.training)
        # A real convolution may hand out rows of words as the projection wants them; counted is
        # the copy that it makes of others.
        assert counted.kept == pytest.approx(found.kept, rel=0.01)
        assert counted.training > 2 * counted.forward > 0
    assert all(tensor.grad is None for tensor in model.parameters())


def image_tokens(model):
    return model.encoder.image_tokens(LENGTHS.size, LENGTHS.size)


@pytest.mark.parametrize("layer_weights", ["uniform", "last"])
def test_a_forward_pass_is_what_the_formulas_say(layer_weights):
    model = cost.build("ofa_nano")
    encoder, layer = model.encoder.layers[0], model.decoder.layer(1)
    tokens = image_tokens(model)
    source, words = tokens + LENGTHS.source, LENGTHS.target
    scored = words * (LAYERS if layer_weights == "uniform" else 1)
    expected = (
        model.encoder.image_flops(LENGTHS.size, LENGTHS.size)
        + LAYERS * (encoder.flops(tokens) + encoder.flops(LENGTHS.source))
        + LAYERS * layer.cross_kv_flops(source)
        + LAYERS * words * layer.flops(words, source)
        + scored * model.decoder.word_flops()
    )
    assert cost.sample_cost(model, LENGTHS, layer_weights).forward == expected


def test_captions_of_an_image_share_its_encoding():
    model = cost.build("ofa_nano")
    source = image_tokens(model) + LENGTHS.source
    one, three = (
        cost.sample_cost(model, replace(LENGTHS, captions=count)).forward for count in (1, 3)
    )
    layer = model.decoder.layer(1).flops(LENGTHS.target, source)
    a_word = LAYERS * (layer + model.decoder.word_flops())
    assert three - one == 2 * LENGTHS.target * a_word


@pytest.mark.parametrize("steps", [6, 20])  # within the cache's first capacity, and beyond
def test_an_answer_is_what_torch_counts_of_a_search(steps):
    model = cost.build("ofa_nano", "cpu").requires_grad_(False)
    answer = cost.Answer(beam=2, steps=steps)
    biases: dict[str, int] = {}
    for positions in (16, 16 if steps <= 16 else 32):
        biases |= bias_costs(model, image_tokens(model), LENGTHS.source, positions)
    shared = sum(biases.values())
    real = counted(measured.search(model, LENGTHS, answer))
    assert cost.answer_flops(model, LENGTHS, answer) + shared == real


def test_candidates_are_run_once_after_the_prompt():
    model = cost.build("ofa_nano")
    lengths = replace(LENGTHS, prompt=2)
    source = image_tokens(model) + LENGTHS.source
    few, many = (
        cost.answer_flops(model, lengths, cost.Answer(candidates=count, words=7))
        for count in (1, 5)
    )
    layers = [n * LAYERS * model.decoder.layer(1).flops(n, source) for n in (3, 7)]
    assert many - few == layers[1] - layers[0] + 4 * 2 * 128 * 7


def test_checkpointed_activations_are_not_kept():
    plain = cost.sample_cost(cost.build("ofa_nano"), LENGTHS)
    less = cost.sample_cost(cost.build("ofa_nano", checkpoint_activations=True), LENGTHS)
    assert less.kept < plain.kept and less.training > plain.training


def test_hours():
    assert cost.hours(3600e9, 1000, 5, tflops=0.5, gpus=2) == pytest.approx(5)


def test_command(capsys):
    arguments = ["--rows", "1000", "--arch", "ofa_nano", "--patch-image-size", "32"]
    assert main([*arguments, "--tflops", "7"]) == 0
    printed = capsys.readouterr().out
    assert "training at 7 TFLOP/s" in printed and "estimated" in printed
    for wrong in (["--tflops", "0"], ["--epochs", "-1"], ["--layer-weights", "1,2,3"]):
        with pytest.raises(SystemExit):
            main([*arguments, *wrong])
    assert "'1,2,3'" in capsys.readouterr().err


def test_data_sets_have_the_rows_that_preparation_expects():
    rows = {data_set.name: data_set for data_set in datasets.DATA_SETS}
    for name, published in (
        ("coco", coco.PUBLISHED),
        ("snli_ve", snli_ve.PUBLISHED),
        ("gqa", gqa.PUBLISHED),
        ("visdial", visdial.PUBLISHED),
        ("vqa", vqa.PUBLISHED),
        ("okvqa", okvqa.PUBLISHED),
        ("vizwiz", {split: {"rows": count} for split, count in vizwiz.PUBLISHED.items()}),
    ):
        found = {s: n.get("rows", n.get("questions")) for s, n in published.items()}
        assert (rows[name].rows, rows[name].valid) == (found["train"], found["valid"])
        found.pop("trainval", None)  # the same rows once more, on demand
        assert rows[name].files == sum(found.values())
    assert rows["coco, CIDEr"].rows == coco.PUBLISHED["train_stage2"]["rows"]
    assert rows["nocaps"].files == sum(nocaps.PUBLISHED.values())
    assert rows["nocaps"].valid == nocaps.PUBLISHED[None]


def test_plan(capsys, monkeypatch):
    """Rows times epochs times operations, at the rates given."""
    few = [one for one in datasets.DATA_SETS if one.name in ("coco, CIDEr", "nocaps")]
    small = [replace(one, lengths=replace(one.lengths, size=32)) for one in few]
    monkeypatch.setattr(datasets, "DATA_SETS", small)
    assert main(["--plan", "--arch", "ofa_nano", "--tflops", "0.001", "2"]) == 0
    head, cider, nocaps = capsys.readouterr().out.splitlines()
    assert "h at 0.001" in head and nocaps.split()[:2] == ["nocaps", "4,500"]
    model = cost.build("ofa_nano", freeze_resnet=True)
    answer = cost.answer_flops(model, small[0].lengths, small[0].answer)
    step = answer + cost.sample_cost(model, small[0].lengths).training
    assert f"{cost.hours(step, 113_287, 3, 0.001, 1):.1f}" in cider.split()
    assert f"{cost.hours(answer, 15_000, 1, 0.001, 1):.1f}" in cider.split()


def test_a_sample_is_timed(capsys, monkeypatch):
    """By a clock that advances half a second whenever it is read."""
    clock = itertools.count(step=0.5)
    monkeypatch.setattr(measured.time, "perf_counter", lambda: next(clock))
    arguments = ["--measure", "--arch", "ofa_nano", "--patch-image-size", "32", "--repeats", "1"]
    assert main([*arguments, "--source-length", "5", "--target-length", "4", "--steps", "3"]) == 0
    head, columns, image, step, update, search = capsys.readouterr().out.splitlines()
    assert head == f"ofa_nano on cpu (threads: {torch.get_num_threads()}), batch size 1"
    assert columns.split() == ["seconds", "GFLOP/s"]
    assert 100 < int(image.split()[4]) < 250  # KB, as a photo of COCO
    assert [line.split()[-1] for line in (image, update)] == ["0.5", "0.5"]
    model, lengths = cost.build("ofa_nano"), cost.Lengths(32, 5, 4)
    training = cost.sample_cost(model, lengths).training
    counts = (training, cost.answer_flops(model, lengths, cost.Answer(5, 3)))
    for line, count in zip((step, search), counts, strict=True):
        assert line.split()[-2:] == ["0.5", f"{count / 0.5 / 1e9:.0f}"]
