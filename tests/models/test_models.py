"""The model against numbers of the official one, its invariances, and its checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from helpers.paths import FIXTURES
from helpers.small_models import VOCAB, batch, nano, select

from ofa_exit.cli.verify import comparison
from ofa_exit.models import encoder_pass
from ofa_exit.models.archs import ARCHS
from ofa_exit.models.ofa import OFAModel
from ofa_exit.models.positions import image_buckets, token_buckets
from ofa_exit.policies.measures import sample_saturation
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.testing import build_dictionary, build_with_weights, record_states

FIXTURE = FIXTURES / "small.json"


def test_small_fixture_matches():
    assert comparison.verify(FIXTURE, 1e-4)


def test_verify_fails_if_numbers_differ(tmp_path, capsys):
    (tmp_path / "small.json").write_bytes(FIXTURE.read_bytes())
    with np.load(FIXTURE.with_suffix(".npz")) as stored:
        arrays = {name: stored[name] for name in stored.files}
    arrays["logits"] = arrays["logits"] * 1.001
    np.savez(tmp_path / "small.npz", **arrays)
    assert not comparison.verify(tmp_path / "small.json", 1e-4)
    assert "TOO LARGE" in capsys.readouterr().out


def test_verify_is_a_command():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "ofa_exit", "verify", "--help"], capture_output=True
    )
    assert done.returncode == 0 and b"FIXTURE.json" in done.stdout


@pytest.mark.parametrize("arch", [name for name in ARCHS if name not in ("ofa_large", "ofa_huge")])
def test_architectures_build(arch):
    task = Namespace(target_dictionary=build_dictionary(VOCAB))
    with torch.device("meta"):
        model = OFAModel.build_model(Namespace(**ARCHS[arch]), task)
    assert len(model.encoder.layers) == ARCHS[arch]["encoder_layers"]


def test_token_buckets_are_exact_near_and_logarithmic_far():
    buckets = token_buckets(8, 32)
    row = buckets[16] - 7
    assert row[12:21].tolist() == [4, 3, 2, 1, 0, -1, -2, -3, -4]
    assert row[0] <= 7 and row[31] >= -7 and (row.diff() <= 0).all()


def test_image_buckets_depend_on_offsets():
    buckets = image_buckets(3)
    assert buckets[1, 1] == buckets[5, 5] and buckets[1, 2] == buckets[4, 5] != buckets[2, 1]
    assert buckets[0, 0] == 27 and buckets[0, 3] == 25 and buckets[3, 0] == 26


@pytest.mark.parametrize("split", [False, True])
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(split):
    model, net_input = nano(split), batch(4)
    whole, _ = model(**net_input)
    for row in range(4):
        alone, _ = model(**select(net_input, row))
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-4, atol=1e-4)


def encoder_states(model, inputs):
    """Return the states before the first and after every encoder layer, image first."""
    with record_states(model.encoder.layers) as passes:
        model.encoder(**inputs)
    return [torch.cat(states, dim=1) for states in zip(*passes, strict=True)]


@torch.no_grad()
def test_encoder_exits_per_sample_and_modality():
    """Each sample exits each pass where a loop over samples says."""
    model, net_input = nano(), batch(5)
    inputs = {k: v for k, v in net_input.items() if k != "prev_output_tokens"}
    states = encoder_states(model, inputs)
    image_threshold, text_threshold = (
        float(torch.stack([sample_saturation(a[:, p], b[:, p]) for a, b in zip(states, states[1:])])
              [:, :2].median())
        for p in (slice(0, 4), slice(4, None))
    )  # fmt: skip
    model.configure_exits(SimilarityExit(image_threshold, text_threshold, decoder_threshold=2.0))
    out = model.encoder(**inputs)
    trace, states = model.last_trace, out.states
    model.configure_exits(None)
    cut = 4  # 32 pixels: 2x2 tokens
    depths = set()
    for row in range(5):
        plain = encoder_states(model, select(inputs, row))
        length = int(inputs["src_lengths"][row])
        ends = []
        for part, threshold in (
            (slice(0, cut), image_threshold),
            (slice(cut, None), text_threshold),
        ):
            layers = [state[:, part] for state in plain]
            depth = next(
                (
                    number
                    for number in range(1, 6)
                    if float(sample_saturation(layers[number - 1], layers[number])) > threshold
                ),
                6,
            )
            ends.append((depth, layers[depth]))
        (image_depth, image), (text_depth, text) = ends
        if not bool(inputs["patch_masks"][row]):
            image_depth = 0
        assert int(trace.image_layers[row]) == image_depth
        assert int(trace.text_layers[row]) == text_depth
        depths |= {image_depth, text_depth}
        expected = model.encoder.layer_norm(torch.cat([image, text], dim=1))[0]
        if image_depth:
            torch.testing.assert_close(states[row, :cut], expected[:cut], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            states[row, cut : cut + length], expected[cut:], rtol=1e-4, atol=1e-4
        )
    assert len(depths) > 2


@torch.no_grad()
def test_joint_encoder_has_one_gate():
    model, net_input = nano(split=False), batch(4)
    model.configure_exits(SimilarityExit(encoder_threshold=0.9, decoder_threshold=2.0))
    model(**net_input)
    trace = model.last_trace
    assert torch.equal(trace.image_layers, trace.text_layers * net_input["patch_masks"])
    assert int(trace.text_layers.min()) < 6


@pytest.mark.parametrize("similarity", ["sample", "token_mean"])
def test_padding_changes_no_similarity(similarity):
    from ofa_exit.policies.similarity import ENCODER_SIMILARITIES

    measure = ENCODER_SIMILARITIES[similarity]
    before, after = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    padded = measure(before, after, padding)
    torch.testing.assert_close(padded[0], measure(before[:1], after[:1])[0])
    torch.testing.assert_close(padded[1], measure(before[1:, :3], after[1:, :3])[0])


@torch.no_grad()
def test_interpolated_positions():
    model = nano(interpolate_position=True, orig_patch_image_size=32)
    positions = model.encoder.image_positions((2, 2))
    plain = nano(orig_patch_image_size=32).encoder.image_positions((2, 2))
    assert torch.equal(positions, plain)
    fine = model.encoder.image_positions((4, 4))
    # Corners of a bilinear resize by two are the corner cells themselves.
    torch.testing.assert_close(fine[0, 0], positions[0, 0])
    torch.testing.assert_close(fine[0, -1], positions[0, -1])


@torch.no_grad()
def test_text_without_images():
    model, net_input = nano(), batch(2)
    net_input["patch_masks"] = torch.zeros(2, dtype=torch.bool)
    blind, _ = model(**net_input)
    net_input.update(patch_images=None, patch_masks=None)
    text, _ = model(**net_input)
    torch.testing.assert_close(blind, text, rtol=1e-4, atol=1e-4)


def test_too_large_images_are_rejected():
    model = nano()
    with pytest.raises(ValueError, match=r"16x16.*--image-bucket-size 8"):
        model(**batch(1, size=256))


def test_features_of_the_last_layer_give_the_logits():
    model, net_input = nano(), batch(2)
    logits, extra = model(**net_input, all_layers=True)
    assert len(extra["layer_features"]) == 6
    torch.testing.assert_close(model.output_layer(extra["layer_features"][-1]), logits)


@pytest.mark.parametrize("split", [False, True])
def test_activation_checkpointing_changes_no_gradient(split):
    net_input = batch(2)
    gradients = []
    for checkpoint in (False, True):
        model = nano(split, checkpoint_activations=checkpoint, dropout=0.0).train()
        model.encoder.embed_images.eval()
        model(**net_input)[0].square().mean().backward()
        gradients.append(model.encoder.layers[0].fc1.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_drop_path_acts_only_in_training():
    model = nano(encoder_drop_path_rate=0.9, decoder_drop_path_rate=0.9, resnet_drop_path_rate=0.9)
    net_input = batch(2)
    with torch.no_grad():
        reference, _ = nano()(**net_input)
        assert torch.equal(model(**net_input)[0], reference)
        assert not torch.equal(model.train()(**net_input)[0], model(**net_input)[0])


@pytest.mark.parametrize("split", [False, True])
def test_every_trained_parameter_gets_a_gradient(split):
    """DistributedDataParallel stops at the second step otherwise."""
    model = nano(split).train()
    model(**batch(2))[0].sum().backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


# ---------------------------------------------------------------------------- checkpoints


def _state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_larger_vocabulary_adds_rows():
    small = _state(nano())
    options = {**ARCHS["ofa_nano"], "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 64}
    model = build_with_weights({**options, "resnet_width": 8, "split_modalities": True}, 70)
    model.load_state_dict(dict(small))
    table = model.encoder.embed_tokens.weight
    assert torch.equal(table[:VOCAB], small["encoder.embed_tokens.weight"])
    assert model.decoder.output_projection.weight is table


def test_a_smaller_vocabulary_is_rejected():
    big = _state(build_with_weights({**ARCHS["ofa_nano"]}, 70))
    model = build_with_weights({**ARCHS["ofa_nano"]}, 60)
    with pytest.raises(
        ValueError, match=r"embed_tokens.weight: checkpoint \(70, 128\), model \(60"
    ):
        model.load_state_dict(big)


@torch.no_grad()
def test_a_larger_grid_keeps_every_cell_and_offset():
    """An image gives the same logits with the larger grid."""
    small = nano(image_bucket_size=4)
    large = nano(image_bucket_size=8)
    large.load_state_dict(_state(small))
    net_input = batch(2, size=64)
    torch.testing.assert_close(large(**net_input)[0], small(**net_input)[0])


def test_missing_and_unknown_entries_are_named():
    model, state = nano(), _state(nano())
    del state["encoder.layers.3.fc1.weight"]
    state["encoder.prompt.weight"] = torch.zeros(3)
    with pytest.raises(ValueError) as error:
        model.load_state_dict(state)
    assert "encoder.layers.3.fc1.weight: checkpoint missing, model (64, 32)" in str(error.value)
    assert "encoder.prompt.weight: checkpoint (3,), model missing" in str(error.value)


def test_other_bucket_tables_are_rejected():
    model, state = nano(), _state(nano())
    state["encoder.token_rp_bucket"] += 1
    with pytest.raises(ValueError, match=r"encoder\.token_rp_bucket.*--token-bucket-size"):
        model.load_state_dict(state)


def test_unsupported_structures_are_rejected():
    with pytest.raises(ValueError, match="scale_resids=True"):
        nano(scale_resids=True)


@torch.no_grad()
def test_biases_are_computed_again_when_weights_change():
    model, net_input = nano(), batch(2)
    before, _ = model(**net_input)
    state = _state(model)
    state["encoder.token_rel_pos_table_list.0.weight"] += 1.0
    state["encoder.pos_q_linear.weight"] *= 2.0
    model.load_state_dict(state)
    after, _ = model(**net_input)
    fresh = nano()
    fresh.load_state_dict(state)
    assert not torch.allclose(before, after)
    assert torch.equal(after, fresh(**net_input)[0])


def test_state_dict_has_the_official_names_and_shapes():
    shapes = json.loads(FIXTURE.read_text())["state_dict"]
    model = comparison.build(json.loads(FIXTURE.read_text()))
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == shapes


def test_cross_biases_are_computed_once_per_shape():
    """Batches of one shape share the projection of positions."""
    model, calls = nano(), []
    model.decoder.cross_pos_k_linear.register_forward_hook(lambda *_: calls.append(1))
    inputs = batch(2)
    wider = {**inputs, "patch_images": torch.rand(2, 3, 32, 64)}
    with torch.no_grad():
        expected = [model(**given)[0] for given in (inputs, wider)]
        model.decoder.forget_shapes()
        calls.clear()
        for _ in range(2):
            for given, logits in zip((inputs, wider), expected):
                torch.testing.assert_close(model(**given)[0], logits)
    assert len(calls) == 2


def test_joint_biases_serve_texts_of_every_length():
    model, calls = nano(split=False), []
    model.encoder.pos_k_linear.register_forward_hook(lambda *_: calls.append(1))
    inputs = batch(2)
    for length in (7, 5):
        given = {**inputs, "src_tokens": inputs["src_tokens"][:, :length]}
        expected = model(**given)[0].detach()
        calls.clear() if length == 7 else None
        with torch.no_grad():
            torch.testing.assert_close(model(**given)[0], expected)
    assert len(calls) == 2  # without gradients once, and the second length's with


@torch.no_grad()
@pytest.mark.parametrize("split", [True, False])
def test_no_mask_is_written_without_padding(split, monkeypatch):
    model, inputs, masked = nano(split), batch(1), []
    write = encoder_pass.mask_keys

    def watched(bias, padding):
        masked.append(padding is not None)
        return write(bias, padding)

    monkeypatch.setattr(encoder_pass, "mask_keys", watched)
    logits = [model(**inputs, padded=padded)[0] for padded in (True, False)]
    torch.testing.assert_close(*logits)
    layers = len(masked) // 2
    assert any(masked[:layers]) and not any(masked[layers:])


@torch.no_grad()
def test_an_encoder_without_the_images_relative_bias():
    """As MuE's released split encoder: the same as tables of zeros."""
    without, usual = nano(no_image_relative_bias=True), nano()
    net_input = batch(2)
    assert not torch.allclose(without(**net_input)[0], usual(**net_input)[0], atol=1e-3)
    for table in usual.encoder.image_rel_pos_table_list:
        table.weight.zero_()
    usual.encoder.forget_shapes()
    torch.testing.assert_close(without(**net_input)[0], usual(**net_input)[0])
    with pytest.raises(ValueError, match=r"--no-image-relative-bias.*--split-modalities"):
        nano(split=False, no_image_relative_bias=True)
