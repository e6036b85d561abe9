"""Checkpoints with and without exit heads, for every kind of head."""

import logging

import pytest
import torch
from helpers.head_samples import DEPTH, KINDS, TRAINED, Context, fresh, noisy, plain_state, started
from helpers.small_models import VOCAB, batch, nano

from ofa_exit.heads.imitation import POOLED_SUM


def head_entries(state) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name.startswith("decoder.exits.")}


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", TRAINED)
def test_heads_are_read_back(kind, caplog):
    saved, built = noisy(kind).state_dict(), started(kind)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        built.load_state_dict(saved)
    assert "missing exit heads" not in caplog.text and not built.decoder.exit_heads.missing
    entries = head_entries(built.state_dict())
    assert entries and all(torch.equal(value, saved[name]) for name, value in entries.items())


@pytest.mark.parametrize("kind", TRAINED)
def test_heads_that_a_checkpoint_lacks_are_logged(kind, caplog):
    with caplog.at_level(logging.INFO):
        started(kind)
    layers = "1,2,3,4,5" if kind.startswith("imitation") else "1,2,4"
    assert f"missing exit heads initialised: those after decoder layers {layers}" in caplog.text


@pytest.mark.parametrize("kind", ["linear", "linear_pooled"])
@pytest.mark.parametrize("more_words", [0, 7])
def test_linear_heads_start_as_the_checkpoints_last_layer(kind, more_words):
    built = fresh(exit_head=kind, exit_layers="2,5", vocab=VOCAB + more_words)
    state = plain_state()
    wanted = {name: state[f"decoder.layer_norm.{name}"].clone() for name in ("weight", "bias")}
    words = state["decoder.output_projection.weight"].clone()
    built.load_state_dict(state)
    for layer in ("2", "5"):
        head = built.decoder.exit_heads[layer]
        assert all(torch.equal(head["norm"].state_dict()[name], wanted[name]) for name in wanted)
        own, last = head["output_projection"].weight, built.decoder.output_projection.weight
        assert torch.equal(own, last) and torch.equal(own[:VOCAB], words)
        assert own.data_ptr() != last.data_ptr()


def test_linear_heads_grow_with_the_vocabulary():
    saved = noisy("linear").state_dict()
    wanted = {name: value.clone() for name, value in head_entries(saved).items()}
    built = fresh(exit_head="linear", exit_layers="1,2,4", vocab=VOCAB + 7)
    built.load_state_dict(saved)
    for name, value in head_entries(built.state_dict()).items():
        assert torch.equal(value[:VOCAB], wanted[name][:VOCAB])
        if name.endswith("output_projection.weight"):  # new words start as the decoder's own
            new = built.decoder.output_projection.weight[VOCAB:]
            assert torch.equal(value[VOCAB:], new) and len(new) == 7


@torch.no_grad()
def test_untrained_linear_and_adapter_heads_are_the_shared_one():
    net_input, wanted = batch(), None
    for kind in ("shared", "linear", "adapter"):
        built = started(kind)
        _, extra = built(**net_input, exit_features=True)
        decoder = built.decoder
        scores = [
            decoder.exit_heads.scores(layer, features, None, decoder.shared_scores)
            for layer, features in extra["head_features"].items()
        ]
        wanted = wanted or scores
        assert all(torch.equal(a, b) for a, b in zip(scores, wanted, strict=True))


@pytest.mark.parametrize("kind", ["imitation", "imitation_all"])
@torch.no_grad()
def test_imitation_heads_start_at_half(kind):
    """λ = 0.5: the plain sum of pooled and imitated states, each the tanh of what it is made of."""
    built, state, context = started(kind), plain_state(), Context()
    heads, hidden = built.decoder.exit_heads, torch.randn(3, 4, 32)
    norm = [state[f"decoder.layer_norm.{name}"] for name in ("weight", "bias")]
    pooled = torch.nn.functional.layer_norm(hidden, [32], *norm).tanh()
    for layer in range(1, DEPTH):
        found = heads.features(layer, hidden, context)
        imitated = DEPTH - layer if kind == "imitation_all" else 1
        torch.testing.assert_close(found, layer * pooled + imitated * pooled.tanh())
        torch.testing.assert_close(context.memory[POOLED_SUM.format(layer)], layer * pooled)


def test_heads_are_built_after_all_layers():
    for kind in TRAINED:
        built = fresh(exit_head=kind, exit_layers="all")
        assert built.decoder.exit_heads.layers == [1, 2, 3, 4, 5]
        assert built.cfg.exit_layers == "1,2,3,4,5"


def test_imitation_heads_look_at_every_layer():
    with pytest.raises(ValueError, match=r"^--exit-layers 2,4: .*--exit-layers all$"):
        fresh(exit_head="imitation", exit_layers="2,4")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "shared"])
def test_kinds_with_weights_need_layers(kind):
    with pytest.raises(ValueError, match=f"^--exit-head {kind} needs --exit-layers$"):
        fresh(exit_head=kind)


@pytest.mark.parametrize("own", TRAINED)
@pytest.mark.parametrize("saved", [*TRAINED, "transformer"])
def test_heads_of_another_kind_are_rejected(own, saved):
    if own == saved or {own, saved} == {"imitation", "imitation_all"}:  # these share their weights
        return
    layers = "1,2,3,4,5"
    state = fresh(exit_head=saved, exit_layers=layers).state_dict()
    with pytest.raises(ValueError, match="another kind") as error:
        fresh(exit_head=own, exit_layers=layers).load_state_dict(state)
    assert "decoder.exits." in one_line(error) and "--exit-head" in one_line(error)


@pytest.mark.parametrize("kind", [*TRAINED, "transformer"])
def test_heads_that_the_model_lacks_are_rejected(kind):
    state = fresh(exit_head=kind, exit_layers="1,2,3,4,5").state_dict()
    with pytest.raises(ValueError, match="--exit-layers") as error:
        nano().load_state_dict(state)
    one_line(error)
    if kind not in ("meta", "imitation", "imitation_all"):
        with pytest.raises(ValueError, match="has heads after 1,2: add --exit-layers 1,2,3,4,5 "):
            fresh(exit_head=kind, exit_layers="1,2").load_state_dict(state)


@pytest.mark.parametrize("kind", TRAINED)
def test_weights_that_do_not_fit_are_named(kind):
    state = noisy(kind).state_dict()
    name = max(head_entries(state))
    state[name] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match="does not fit") as error:
        started(kind).load_state_dict(state)
    assert f"{name}: checkpoint (3, 3), model (" in one_line(error)
