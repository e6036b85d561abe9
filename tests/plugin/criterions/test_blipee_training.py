"""Training exits: which parameters of the real model change."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fairseq.distributed import LegacyDistributedDataParallel, ModuleProxyWrapper
from fairseq.optim import AMPOptimizer, FP16Optimizer, MemoryEfficientFP16Optimizer, build_optimizer
from helpers import small_models as helpers
from helpers.blipee_samples import GROUPS, TASK, criterion, gradients, model
from helpers.small_models import training_batch
from omegaconf import OmegaConf
from torch.nn.parallel import DistributedDataParallel

from ofa_exit.plugin.criterions import blipee
from ofa_exit.plugin.criterions.blipee import (
    CLASSIFIER_GROUP,
    TRANSFORMER_GROUP,
    BlipeeAdversarial,
)
from ofa_exit.plugin.criterions.groups import exit_heads, step_groups
from ofa_exit.plugin.criterions.mue import MuELoss, MuELossConfig

# ------------------------------------------------------------------ what is trained


def test_the_number_of_trained_parameters_follows_the_paper():
    """One layer and one MLP per exit, and no vocabulary projection (Section 3.1)."""
    built, dim, ffn, hidden = model("1,3,4"), 32, 64, 24
    attention = 4 * (dim * dim + dim) + 4  # with OFA's factor for each of 4 heads
    norms = 5 * 2 * dim + 2 * ffn
    layer = sum(p.numel() for p in built.decoder.layers[0].parameters())
    assert layer == 2 * attention + 2 * dim * ffn + dim + ffn + norms
    trained = sum(p.numel() for p in built.parameters() if p.requires_grad)
    assert trained == 3 * (layer + dim * hidden + 2 * hidden + 1)
    assert {p.param_group for p in built.parameters() if p.requires_grad} == GROUPS


def test_backbone_stays_in_eval_mode_and_exits_train():
    built = model(dropout=0.1).train()
    training = {name for name, module in built.named_modules() if module.training}
    assert all(n.startswith(("decoder.exits", "feature_classifiers")) or not n for n in training)
    assert built.decoder.exits["1"].training
    assert not any(module.training for module in built.eval().modules())
    assert helpers.nano().train().encoder.training


def test_a_criterion_may_train_backbone_and_heads_together():
    """Without ``prepare_training``, nothing is frozen and everything is in training mode."""
    built = helpers.nano(exit_layers="1,3").train()
    assert all(p.requires_grad for p in exit_heads(built).parameters())
    assert all(p.requires_grad for p in built.decoder.layers.parameters())
    assert built.encoder.training and exit_heads(built)["1"].training


def test_an_untrained_exit_equals_the_backbone_one_layer_later():
    plain, built = helpers.nano(), model("1,3")
    state = {n: v for n, v in plain.state_dict().items() if ".exits." not in n}
    built.load_state_dict(state, strict=True)
    built.eval()
    net_input = helpers.batch()
    with torch.no_grad():
        final, extra = built(**net_input, exit_features=True)
        wanted, layers = plain(**net_input, features_only=True, all_layers=True)
    torch.testing.assert_close(final, wanted, rtol=0, atol=0)
    for layer, features in extra["exit_features"].items():
        torch.testing.assert_close(features, layers["layer_features"][layer], rtol=0, atol=0)


def test_losses_equal_the_equations_by_hand():
    built, sample = model().eval(), training_batch()
    at = sample["target"].ne(1)
    target = sample["target"][at]
    final, extra = built(**sample["net_input"], exit_features=True)
    word = kl = gen = fc = 0.0
    for layer, features in extra["exit_features"].items():
        logits, final_logits = built.output_layer(features[at]), built.output_layer(final[at])
        p, q = logits.log_softmax(-1), final_logits.log_softmax(-1)
        word += -p.gather(1, target[:, None]).sum().item()
        kl += (p.exp() * (p - q)).sum().item()
        d_exit = built.feature_classifiers[str(layer)](features[at]).sigmoid()
        d_final = built.feature_classifiers[str(layer)](final[at]).sigmoid()
        gen += -d_exit.log().sum().item()
        fc += -(d_final.log() + (1 - d_exit).log()).sum().item()
    supervised = criterion(adversarial_weight=0.5).eval()
    with torch.no_grad():
        loss, size, log = supervised(built, sample)
        assert size == sample["ntokens"] == int(at.sum())
        assert loss.item() == pytest.approx(word + 0.5 * gen, rel=1e-4)
        assert log["fc_loss"].item() == pytest.approx(fc, rel=1e-4)
        loss, _, log = criterion(blipee_mode="distill").eval()(built, sample)
        assert loss.item() == pytest.approx(kl + gen, rel=1e-3)
        alone, _, log = criterion(adversarial_weight=0).eval()(built, sample)
        assert alone.item() == pytest.approx(word, rel=1e-4) and "fc_loss" not in log
        alone, _, _ = criterion(word_weight=0).eval()(built, sample)
        assert alone.item() == pytest.approx(gen, rel=1e-4)


@pytest.mark.parametrize("mode", ["supervised", "distill"])
@pytest.mark.parametrize("words", [0.0, 1.0])
def test_an_update_of_both_has_the_gradients_of_each(mode, words):
    """Each loss is blind to the other group: the sum's gradients are those of the two alone."""
    built, sample = model(dropout=0.0).train(), training_batch()
    options = {"blipee_mode": mode, "word_weight": words}
    wanted = {}
    for update in (0, 1):
        built.zero_grad()
        built.set_num_updates(update)
        criterion(**options, blipee_updates="alternate")(built, sample)[0].backward()
        wanted.update({name: value.clone() for name, value in gradients(built).items()})
    for update in (0, 1):
        built.zero_grad()
        built.set_num_updates(update)
        loss, size, log = criterion(**options)(built, sample)
        loss.backward()
        assert size == sample["ntokens"]
        torch.testing.assert_close(loss, log["loss"] + log["fc_loss"])
        together = gradients(built)
        assert together.keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(together[name], gradient, msg=name)


@pytest.mark.parametrize("mode", ["supervised", "distill"])
@pytest.mark.parametrize("words", [0.0, 1.0])
def test_each_update_in_turn_has_gradients_in_its_group_only(mode, words):
    built, sample = model().train(), training_batch()
    loss = criterion(blipee_mode=mode, word_weight=words, blipee_updates="alternate")
    for update, prefix in ((0, "feature_classifiers."), (1, "decoder.exits.")):
        built.zero_grad()
        built.set_num_updates(update)
        loss(built, sample)[0].backward()
        names = gradients(built)
        assert names and all(name.startswith(prefix) for name in names), names
        assert {n.split(".")[len(prefix.split(".")) - 1] for n in names} == {"1", "3"}
        # Data-parallel training needs a gradient, possibly 0, of all trained parameters.
        assert all(p.grad is not None for p in built.parameters() if p.requires_grad)


def test_entailment_learns_over_the_allowed_answers_only():
    built, sample = model().train(), training_batch()
    allowed = torch.rand(*sample["target"].shape, helpers.VOCAB) < 0.3
    sample["constraint_masks"] = allowed.scatter(2, sample["target"].unsqueeze(2), True)
    sample["conf"] = torch.rand(3)
    for mode in ("supervised", "distill"):
        constrained, _, log = criterion(blipee_mode=mode)(built, sample)
        free, _, _ = criterion(blipee_mode=mode)(built, {**sample, "constraint_masks": None})
        assert constrained.isfinite() and constrained < free
        assert log["correct_exit_1"] >= 0


# ------------------------------------------------------------------ updates


def optimizers():
    common = {
        "fp16_init_scale": 4,
        "fp16_scale_window": 8,
        "fp16_scale_tolerance": 0.0,
        "threshold_loss_scale": None,
        "min_loss_scale": 1e-4,
        "bf16": False,
        "fp16_no_flatten_grads": True,
        "amp_scale_window": None,
        "model_parallel_size": 1,
        "on_cpu_convert_precision": False,
        "amp_init_scale": 4,
    }
    cfg = OmegaConf.create(
        {
            "optimizer": {"_name": "adam", "adam_betas": "(0.9, 0.999)", "lr": [0.01]},
            "common": common,
            "optimization": {"update_freq": [1]},
            "distributed_training": {
                "distributed_world_size": 1,
                "ddp_backend": "no_c10d",
                "pipeline_model_parallel": False,
            },
        }
    )
    cfg.optimizer.update(adam_eps=1e-8, weight_decay=0.1, tpu=False, use_old_adam=False)
    cfg.optimizer.update(fp16_adam_stats=False)
    return {
        "fp32": lambda params: build_optimizer(cfg.optimizer, params),
        "fp16": lambda params: FP16Optimizer.build_optimizer(cfg, params),
        "memory_efficient_fp16": lambda params: MemoryEfficientFP16Optimizer.build_optimizer(
            cfg, params
        ),
        "amp": lambda params: AMPOptimizer.build_optimizer(cfg, params),
    }


@pytest.mark.parametrize("kind", ["fp32", "fp16", "memory_efficient_fp16", "amp"])
def test_a_step_changes_one_group_only(kind):
    """Parameters, moments and step counts, under every precision that fairseq has."""
    built, sample = model().train(), training_batch()
    loss = criterion(blipee_updates="alternate")
    if "fp16" in kind:
        built.half()
        sample["net_input"]["patch_images"] = sample["net_input"]["patch_images"].half()
    params = [p for p in built.parameters() if p.requires_grad]
    optimizer = optimizers()[kind](params)
    inner = getattr(optimizer, "fp32_optimizer", getattr(optimizer, "wrapped_optimizer", optimizer))

    def snapshot(group: str) -> list[torch.Tensor]:
        values = [p.detach().clone() for p in params if p.param_group == group]
        for p in inner.params:
            if p.param_group == group:
                state = inner.optimizer.state.get(p, {})
                values += [p.detach().clone()] + [
                    torch.as_tensor(v).clone() for v in state.values()
                ]
        return values

    for update in range(4):
        (group,) = loss.get_groups_for_update(update)
        (other,) = GROUPS - {group}
        built.set_num_updates(update)
        before = {g: snapshot(g) for g in GROUPS}
        optimizer.zero_grad()
        value = loss(built, sample)[0]
        assert value.dtype == torch.float32
        optimizer.backward(value)
        optimizer.multiply_grads(1 / sample["ntokens"])
        optimizer.clip_grad_norm(1.0)
        loss.optimizer_step(optimizer, update)
        after = {g: snapshot(g) for g in GROUPS}
        assert all(torch.equal(a, b) for a, b in zip(before[other], after[other], strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(before[group], after[group]))


@pytest.mark.parametrize("kind", ["fp32", "fp16", "memory_efficient_fp16", "amp"])
def test_a_step_changes_both_groups(kind):
    built, loss, sample = model().train(), criterion(), training_batch()
    if "fp16" in kind:
        built.half()
        sample["net_input"]["patch_images"] = sample["net_input"]["patch_images"].half()
    params = [p for p in built.parameters() if p.requires_grad]
    optimizer = optimizers()[kind](params)
    for update in range(2):
        before = [p.detach().clone() for p in params]
        built.set_num_updates(update)
        optimizer.zero_grad()
        optimizer.backward(loss(built, sample)[0])
        optimizer.multiply_grads(1 / sample["ntokens"])
        optimizer.clip_grad_norm(1.0)
        loss.optimizer_step(optimizer, update)
        moved = {p.param_group for p, old in zip(params, before) if not torch.equal(p, old)}
        assert moved == GROUPS


def test_flattened_parameters_are_rejected():
    """Where an update trains one group: flat parameters can only be updated together."""
    steps = []
    flat = SimpleNamespace(
        params=[torch.nn.Parameter(torch.zeros(5))], step=lambda: steps.append(1)
    )
    with pytest.raises(ValueError, match="--fp16-no-flatten-grads"):
        step_groups(flat, {TRANSFORMER_GROUP})
    with pytest.raises(ValueError, match="--fp16-no-flatten-grads"):
        criterion(adversarial_weight=0).optimizer_step(flat, 0)
    criterion().optimizer_step(flat, 0)
    assert steps == [1]


def test_groups_of_each_update():
    def groups(**options) -> list[set[str]]:
        return [criterion(**options).get_groups_for_update(n) for n in range(3)]

    exits, classifiers = {TRANSFORMER_GROUP}, {CLASSIFIER_GROUP}
    assert groups() == [GROUPS] * 3
    assert groups(blipee_updates="alternate") == [classifiers, exits, classifiers]
    for updates in ("both", "alternate"):
        assert groups(blipee_updates=updates, adversarial_weight=0) == [exits] * 3


# ------------------------------------------------------------------ errors and warnings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blipee_mode": "both"}, "--blipee-mode 'both'.*supervised, distill"),
        ({"blipee_updates": "twice"}, "--blipee-updates 'twice'.*both, alternate"),
        ({"kl_direction": "up"}, "--kl-direction"),
        ({"adversarial_weight": -1.0}, "--adversarial-weight"),
        ({"word_weight": math.nan}, "--word-weight"),
        ({"adversarial_weight": 0.0, "word_weight": 0.0}, "--adversarial-weight and --word-weight"),
        ({"label_smoothing": 0.1, "blipee_mode": "distill"}, "--label-smoothing"),
        ({"feature_classifier_dim": 0}, "--feature-classifier-dim 0"),
    ],
)
def test_invalid_options_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        criterion(**options)


def test_models_and_criterions_must_fit():
    with pytest.raises(ValueError, match="--exit-layers"):
        criterion().prepare_training(helpers.nano())
    with pytest.raises(ValueError, match="--exit-layers"):
        criterion().eval()(helpers.nano(), training_batch())
    mue = MuELoss.build_criterion(MuELossConfig(sentence_avg=False), TASK)
    with pytest.raises(ValueError, match="does not train the exits of --exit-layers"):
        mue.prepare_training(model())
    with pytest.raises(ValueError, match="--exit-layers 1,3"):
        helpers.nano().load_state_dict(model().state_dict())


def test_collapse_is_reported_once(caplog):
    blipee.warn_of_collapse.cache_clear()
    log = {"sample_size": 4, "loss": 1.0, "loss_size": 4, "exit_tokens": 4, "spread_tokens": 4}
    for _ in range(2):
        BlipeeAdversarial.reduce_metrics([{**log, "spread_exit_2": 0.01, "spread_exit_4": 3.0}])
    assert caplog.text.count("layer 2 has collapsed") == 1
    assert "layer 4" not in caplog.text


# ------------------------------------------------------------------ data-parallel


def worker(rank: int, folder: Path, backend: str, loss, built, samples: list) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=len(samples))
    if backend == "legacy_ddp":
        wrapped = ModuleProxyWrapper(LegacyDistributedDataParallel(built, dist.group.WORLD))
    else:  # fairseq's default, which does not look for unused parameters
        wrapped = ModuleProxyWrapper(DistributedDataParallel(built))
    grads = {}
    for update in range(4):
        wrapped.zero_grad()
        built.set_num_updates(update)
        loss(wrapped, samples[rank])[0].backward()
        if backend == "legacy_ddp":
            wrapped.all_reduce_grads()
        grads.update(gradients(built))
    if rank == 0:
        torch.save(grads, folder / "grads.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("updates", ["both", "alternate"])
@pytest.mark.parametrize("backend", ["pytorch_ddp", "legacy_ddp"])
def test_two_workers_get_the_gradients_of_one(backend, updates, tmp_path):
    built, samples = model(dropout=0.0).train(), [training_batch(2), training_batch(4)]
    loss = criterion(blipee_updates=updates)
    arguments = (tmp_path, backend, loss, built, samples)
    mp.start_processes(worker, arguments, nprocs=2, start_method="fork")
    grads = torch.load(tmp_path / "grads.pt")
    wanted = {}
    for update in (0, 1):
        built.zero_grad()
        built.set_num_updates(update)
        sum(loss(built, sample)[0] for sample in samples).backward()
        wanted.update(gradients(built))
    assert wanted.keys() == grads.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(2 * grads[name], gradient, rtol=1e-4, atol=1e-5)
