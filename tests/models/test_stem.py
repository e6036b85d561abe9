"""The image stem: torchvision's weights, folded batch norms, and its FLOPs."""

from __future__ import annotations

import pytest
import torch
import torchvision
from helpers.flop_counts import counted
from helpers.small_models import batch, nano

from ofa_exit.models.archs import RESNET_STAGES
from ofa_exit.models.stem import ResNetStem, load_resnet_weights


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
    with pytest.raises(ValueError, match=r"resnet\.pth.*--resnet-type"):
        load_resnet_weights(other, str(tmp_path / "resnet.pth"))


def test_frozen_stem_keeps_weights_and_statistics():
    model = nano(freeze_resnet=True).train()
    before = {n: v.clone() for n, v in model.encoder.embed_images.state_dict().items()}
    model(**batch(2))[0].sum().backward()
    after = model.encoder.embed_images.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.encoder.embed_images.conv1.weight.grad is None


def test_folded_batch_norms_equal_separate_ones():
    """Folded weights are computed again after the module's weights change."""
    module = nano().encoder.embed_images
    image = torch.rand(2, 3, 64, 64)
    for _ in range(2):
        for norm in module.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.running_mean.uniform_(-1, 1)
                norm.running_var.uniform_(0.5, 2)
                torch.nn.init.uniform_(norm.weight, 0.5, 2)
        module.load_state_dict(module.state_dict())
        plain = module(image).detach()  # with gradients, nothing is folded
        with torch.no_grad():
            assert (module(image) - plain).abs().max() < 1e-5 * plain.abs().max()


@pytest.mark.parametrize("size", [(64, 48), (37, 91), (16, 16)])
@pytest.mark.parametrize("stages", [(1, 1, 2), (2, 2, 2)])
def test_stem_flops_match_torch(size, stages):
    stem = ResNetStem(stages, width=8, drop_path=0.1).eval()
    features = []
    assert counted(lambda: features.append(stem(torch.randn(1, 3, *size)))) == stem.flops(*size)
    assert features[0].shape[-2:] == stem.grid(*size)
