"""What a training step costs, counted without running it."""

from argparse import Namespace

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel

from ofa_exit import cost
from ofa_exit.evaluation import flops
from ofa_exit.models.archs import ARCHS
from ofa_exit.models.ofa import OFAModel
from ofa_exit.verify import dictionary_of

LENGTHS = cost.Lengths(size=32, source=6, target=5)


def test_a_step_is_counted_as_a_real_one():
    model = cost.build("ofa_nano")
    task = Namespace(target_dictionary=dictionary_of(cost.VOCABULARY))
    arguments = Namespace(**ARCHS["ofa_nano"], split_modalities=True)
    real = OFAModel.build_model(arguments, task).train()
    for rows in (1, 2):
        counted = cost.step_cost(model.train(), rows, LENGTHS, "uniform")
        # Fused attention kernels compute weights again in the backward pass, which math does not.
        with sdpa_kernel(SDPBackend.MATH):
            found = cost.step_cost(real, rows, LENGTHS, "uniform")
        assert (counted.forward, counted.training) == (found.forward, found.training)
        # A real convolution may hand out rows of words as the projection wants them; counted is
        # the copy that it makes of others.
        assert counted.kept == pytest.approx(found.kept, rel=0.01)
        assert counted.training > 2 * counted.forward > 0
    assert all(tensor.grad is None for tensor in model.parameters())


@pytest.mark.parametrize("layer_weights", ["uniform", "last"])
def test_a_forward_pass_is_what_the_formulas_say(layer_weights):
    model = cost.build("ofa_nano")
    shape = flops.ModelShape.from_model(model)
    stem = flops.stem_cost(model.encoder.embed_images, (LENGTHS.size, LENGTHS.size))
    source, words = stem.tokens + LENGTHS.source, LENGTHS.target
    scored = words * (shape.decoder_layers if layer_weights == "uniform" else 1)
    expected = (
        stem.flops
        + flops.image_projection(shape, stem.tokens)
        + shape.encoder_layers
        * (flops.encoder_layer(shape, stem.tokens) + flops.encoder_layer(shape, LENGTHS.source))
        + shape.decoder_layers * flops.cross_key_values(shape, source)
        + shape.decoder_layers * words * flops.decoder_layer(shape, words, source)
        + scored * flops.vocabulary_projection(shape)
    )
    assert cost.sample_cost(model, LENGTHS, layer_weights).forward == expected


def test_checkpointed_activations_are_not_kept():
    plain = cost.sample_cost(cost.build("ofa_nano"), LENGTHS)
    less = cost.sample_cost(cost.build("ofa_nano", checkpoint_activations=True), LENGTHS)
    assert less.kept < plain.kept and less.training > plain.training


def test_hours():
    assert cost.hours(3600e9, 1000, 5, tflops=0.5, gpus=2) == pytest.approx(5)


def test_command(capsys):
    arguments = ["--rows", "1000", "--arch", "ofa_nano", "--patch-image-size", "32"]
    assert cost.main([*arguments, "--tflops", "7"]) == 0
    printed = capsys.readouterr().out
    assert "training at 7 TFLOP/s" in printed and "estimated" in printed
    for wrong in (["--tflops", "0"], ["--epochs", "-1"], ["--layer-weights", "1,2"]):
        with pytest.raises(SystemExit):
            cost.main([*arguments, *wrong])
    assert "give one for each" in capsys.readouterr().err
