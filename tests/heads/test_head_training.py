"""Training every kind of head: features, gradients and numbers of few bits."""

import pytest
import torch
from helpers.blipee_samples import TASK
from helpers.head_samples import DEPTH, KINDS, TRAINED, Context, gradients, noisy
from helpers.small_models import TriesHeads, batch, generate, nano, training_batch

from ofa_exit.plugin.criterions.leebert import LeeBertConfig, LeeBertLoss
from ofa_exit.plugin.criterions.mue import MuELoss, MuELossConfig
from ofa_exit.plugin.criterions.multi_exit import (
    ExitHeadsConfig,
    ExitHeadsLoss,
    MultiExitConfig,
    MultiExitLoss,
)
from ofa_exit.plugin.errors import UsageError
from ofa_exit.policies.confidence import ConfidenceExit

IMITATION = ["imitation", "imitation_all"]
WITH_WORDS = [kind for kind in TRAINED if kind != "meta"]  # all weights serve the word scores


def loss_of(cls, config, **options):
    return cls.build_criterion(config(**{"sentence_avg": False, **options}), TASK).train()


def head_names(built) -> set[str]:
    return {n for n, _ in built.named_parameters() if n.startswith("decoder.exits.")}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_whole_sequences_have_the_features_of_single_steps(kind, monkeypatch):
    built, net_input = noisy(kind), batch(3)
    _, extra = built(**net_input, exit_features=True)
    made = {layer: [] for layer in built.decoder.exit_heads.layers}
    features = built.decoder.exit_heads.features

    def recorded(layer, hidden, context):
        made[layer].append(features(layer, hidden, context))
        return made[layer][-1]

    if kind != "shared":
        monkeypatch.setattr(built.decoder.exit_heads, "features", recorded)
        built.configure_exits(TriesHeads())
        tokens, state = net_input.pop("prev_output_tokens"), {}
        out = built.encoder(**net_input)
        for t in range(tokens.size(1)):
            built.decoder(tokens[:, : t + 1], out, incremental_state=state)
        for layer, steps in made.items():
            torch.testing.assert_close(
                torch.cat(steps, dim=1), extra["head_features"][layer], rtol=1e-4, atol=1e-5
            )
    norm = built.decoder.layer_norm
    assert list(extra["head_features"]) == list(extra["exit_features"]) == list(made)
    for layer, found in extra["exit_features"].items():
        torch.testing.assert_close(found, norm(extra["head_features"][layer]))


@pytest.mark.parametrize("kind", WITH_WORDS)
def test_a_frozen_backbone_gets_no_gradient_and_every_head_one(kind):
    built, loss = noisy(kind), loss_of(ExitHeadsLoss, ExitHeadsConfig)
    loss.prepare_training(built)
    loss(built.train(), training_batch())[0].backward()
    assert gradients(built).keys() == head_names(built)
    assert all(p.grad is None for n, p in built.named_parameters() if n not in head_names(built))


@pytest.mark.parametrize("kind", ["shared", *WITH_WORDS])
def test_backbone_and_heads_learn_together(kind):
    torch.manual_seed(3)
    sample = training_batch()
    plain = nano().train()
    loss_of(MuELoss, MuELossConfig)(plain, sample)[0].backward()
    built, loss = noisy(kind), loss_of(MultiExitLoss, MultiExitConfig)
    loss.prepare_training(built)
    loss(built.train(), sample)[0].backward()
    assert gradients(built).keys() == gradients(plain).keys() | head_names(built)


def test_no_word_loss_trains_the_meta_classifier():
    """Its labels are the layers' agreement, not the words."""
    built, loss = noisy("meta"), loss_of(MultiExitLoss, MultiExitConfig)
    loss(built.train(), training_batch())[0].backward()
    assert not gradients(built).keys() & head_names(built)


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        (MultiExitLoss, MultiExitConfig),
        (ExitHeadsLoss, ExitHeadsConfig),
        (LeeBertLoss, LeeBertConfig),
    ],
)
def test_word_losses_reject_heads_that_they_would_not_train(cls, config):
    with pytest.raises(UsageError, match="--exit-head meta: calm_meta_loss"):
        loss_of(cls, config).prepare_training(noisy("meta"))
    loss_of(cls, config).prepare_training(noisy("adapter"))


@pytest.mark.parametrize("kind", ["adapter", *IMITATION])
def test_which_weights_a_head_s_features_reach(kind):
    """Imitation: the newest pooled state alone, and no backbone in the lower half."""
    built = noisy(kind)
    _, extra = built(**batch(), exit_features=True, train_backbone=True)
    named = dict(built.named_parameters())
    for layer, features in extra["head_features"].items():
        features.square().sum().backward(retain_graph=True)
        found = gradients(built).keys()
        built.zero_grad()
        if kind == "adapter":
            wanted = {n for n in head_names(built) if n.startswith(f"decoder.exits.{layer}.")}
        else:
            last = DEPTH if kind == "imitation_all" else layer + 1
            parts = ["gate", f"{layer}.norm", f"{layer}.pool"]
            parts += [f"{later - 1}.imitator" for later in range(layer + 1, last + 1)]
            wanted = {f"decoder.exits.{part}.{end}" for part in parts for end in ("weight", "bias")}
        assert {n for n in found if n.startswith("decoder.exits.")} == wanted
        trained = {int(n.split(".")[2]) + 1 for n in found if n.startswith("decoder.layers.")}
        lower = kind in IMITATION and layer <= 3
        assert trained == (set() if lower else set(range(1, layer + 1)))
        assert wanted <= named.keys()


@pytest.mark.parametrize("kind", WITH_WORDS)
def test_recomputed_activations_change_nothing(kind):
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(3)
        built = noisy(kind, checkpoint_activations=checkpointed, dropout=0.0)
        loss = loss_of(MultiExitLoss, MultiExitConfig)(built.train(), training_batch())[0]
        loss.backward()
        found.append((loss, gradients(built)))
    (loss, grads), (again, regrads) = found
    torch.testing.assert_close(loss, again)
    assert grads.keys() == regrads.keys()
    for name, gradient in grads.items():
        torch.testing.assert_close(gradient, regrads[name], msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_models_of_half_precision_run(kind, dtype):
    built = noisy(kind).to(dtype)
    net_input = batch()
    net_input["patch_images"] = net_input["patch_images"].to(dtype)
    built.configure_exits(ConfidenceExit(0.3))
    assert generate(built, net_input, beam_size=2)
    assert len(built.last_trace.steps) > 1
    sample = training_batch()
    sample["net_input"]["patch_images"] = sample["net_input"]["patch_images"].to(dtype)
    loss, _, _ = loss_of(MultiExitLoss, MultiExitConfig)(built, sample)
    assert loss.isfinite() and loss.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", IMITATION)
@torch.no_grad()
def test_sums_of_pooled_states_do_not_overflow(kind, dtype):
    """Each of at most 12 addends is below 1, however large the states are."""
    heads, context = noisy(kind).decoder.exit_heads.to(dtype), Context()
    for layer in heads.layers:
        hidden = 3e4 * torch.randn(2, 3, 32).sign().to(dtype)
        found = heads.features(layer, hidden, context)
        assert found.dtype == dtype and found.isfinite().all()
        assert found.abs().max() <= 2 * DEPTH
