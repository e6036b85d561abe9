"""The image stem: its weights, its folded norms, and sums made while convolving."""

from __future__ import annotations

import pytest
import torch
import torchvision
from helpers.small_models import batch, nano

from ofa_exit.models import stem
from ofa_exit.models.stem import RESNET_STAGES, ResNetStem, load_resnet_weights


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_torchvision_weights_load_into_the_stem(name, tmp_path):
    torch.manual_seed(0)
    official = getattr(torchvision.models, name)(weights=None).eval()
    torch.save(official.state_dict(), tmp_path / "resnet.pth")
    module = ResNetStem(RESNET_STAGES[name]).eval()
    load_resnet_weights(module, str(tmp_path / "resnet.pth"))
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        x = official.maxpool(official.relu(official.bn1(official.conv1(images))))
        expected = official.layer3(official.layer2(official.layer1(x)))
        assert (module(images) - expected).abs().max() < 1e-5 * expected.abs().max()
    other = ResNetStem(RESNET_STAGES["resnet152"])
    with pytest.raises(ValueError, match="--resnet-type"):
        load_resnet_weights(other, str(tmp_path / "resnet.pth"))


def test_frozen_stem_keeps_weights_and_statistics():
    model = nano(freeze_resnet=True).train()
    before = {n: v.clone() for n, v in model.encoder.embed_images.state_dict().items()}
    model(**batch(2))[0].sum().backward()
    after = model.encoder.embed_images.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.encoder.embed_images.conv1.weight.grad is None


def test_folded_norms_are_the_norms():
    """Without gradients the stem runs each convolution with its batch norm folded in, until the
    weights change."""
    module = nano().encoder.embed_images
    image = torch.rand(2, 3, 64, 64)
    for _ in range(2):
        for norm in module.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.running_mean.uniform_(-1, 1)
                norm.running_var.uniform_(0.5, 2)
                torch.nn.init.uniform_(norm.weight, 0.5, 2)
        module.load_state_dict(module.state_dict())
        plain = module(image).detach()
        with torch.no_grad():
            assert (module(image) - plain).abs().max() < 1e-5 * plain.abs().max()


class NoSum:
    """A torch whose operator is another one than here."""

    def __init__(self, error: Exception):
        self.error = error

    def binary(self, *_):
        raise self.error


@torch.no_grad()
def test_sums_are_made_while_convolving_where_torch_can(monkeypatch):
    """By oneDNN's private operator, or plainly where it is missing, fails or is switched off."""
    module = nano().encoder.embed_images
    image, calls = torch.rand(2, 3, 64, 64), []
    sums = stem.conv_sum
    monkeypatch.setattr(stem, "conv_sum", lambda *given: calls.append(1) or sums(*given))
    blocks = sum(len(layer) for layer in (module.layer1, module.layer2, module.layer3))

    def run() -> tuple[torch.Tensor, int]:
        calls.clear()
        return module(image), len(calls)

    fast, fused = run()
    assert fused == (blocks if stem.SUMS else 0)
    with torch.backends.mkldnn.flags(enabled=False):
        plain, fused = run()
    assert fused == 0
    assert (fast - plain).abs().max() < 1e-5 * plain.abs().max()
    monkeypatch.setattr(stem, "SUMS", False)
    plain, fused = run()
    assert fused == 0
    assert (fast - plain).abs().max() < 1e-5 * plain.abs().max()


@pytest.mark.skipif(not stem.SUMS, reason="this build of torch has no oneDNN")
@pytest.mark.parametrize(
    "error", [AttributeError("gone"), RuntimeError("unsupported"), TypeError("other arguments")]
)
def test_a_sum_that_fails_is_found_by_trying(monkeypatch, error):
    state = torch.get_rng_state()
    assert stem.has_conv_sum()
    assert torch.equal(torch.get_rng_state(), state)
    with monkeypatch.context() as patch:
        patch.setattr(torch.ops.mkldnn, "_convolution_pointwise", NoSum(error))
        assert not stem.has_conv_sum()
    monkeypatch.setattr(stem, "conv_sum", lambda x, *_: torch.zeros_like(x))  # it does not add
    assert not stem.has_conv_sum()
