"""The image stem: a ResNet cut after its third stage, stride 16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck
from torchvision.ops import StochasticDepth

from ofa_exit.models.positions import ShapeCache

RESNET_STAGES: dict[str, tuple[int, int, int]] = {
    "resnet_nano": (2, 2, 2),
    "resnet50": (3, 4, 6),
    "resnet101": (3, 4, 23),
    "resnet152": (3, 8, 36),
}


def conv_sum(x: Tensor, plus: Tensor, weight: Tensor, bias: Tensor, conv: Any) -> Tensor:
    """conv(x) + plus with another weight and bias, by oneDNN's convolution that adds to what it
    writes. An operator that torch keeps for itself and may change: see ``SUMS``."""
    how = (conv.padding, conv.stride, conv.dilation, conv.groups)
    return torch.ops.mkldnn._convolution_pointwise.binary(
        x, plus, weight, bias, *how, "add", 1.0, None, [], None
    )


def has_conv_sum() -> bool:
    """Whether this build of torch has ``conv_sum``, and it adds: tried on a few numbers."""
    if not torch.backends.mkldnn.is_available():
        return False
    conv = nn.Conv2d(2, 2, 1, device="meta")  # for stride and padding: draws no random numbers
    x, weight, bias = (
        torch.ones(shape, device="cpu") for shape in ((1, 2, 2, 2), (2, 2, 1, 1), (2,))
    )
    try:
        found = conv_sum(x, x, weight, bias, conv)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool((found == 4).all())  # two channels, the bias, and what is added


SUMS = has_conv_sum()  # at import: a try during a pass would be counted or compiled with it


def rising_rates(last: float, count: int) -> list[float]:
    """Drop-path rates that rise linearly from 0 to ``last``."""
    return [last * i / max(count - 1, 1) for i in range(count)]


class FoldsNorms(ShapeCache):
    """A module that at inference runs convolution, batch norm and what follows as one operation."""

    def folds(self) -> bool:
        return not self.training and not torch.is_grad_enabled()

    def conv_norm(
        self,
        x: Tensor,
        conv: Any,
        norm: Any,
        name: str,
        relu: bool = True,
        plus: Optional[Tensor] = None,
    ) -> Tensor:
        """relu(norm(conv(x)) + plus); without gradients, in eval mode, by weights folded once."""
        if self.folds():
            weight, bias = self.once_per_shape("folded", name, lambda: fold(conv, norm))
            return convolve(x, weight, bias, conv, relu, plus)
        out = norm(conv(x))
        out = out if plus is None else plus + out
        return F.relu(out, inplace=True) if relu else out


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor, conv: Any, relu: bool, plus: Optional[Tensor]
) -> Tensor:
    """relu(conv(x) + plus) with another weight and bias.

    On a CPU the sum is oneDNN's, made while the convolution is written, as torch.compile would: 0.9
    of the stem's time. The ReLU is torch's own, since oneDNN's turns NaN into 0.
    """
    if plus is None:
        out = F.conv2d(x, weight, bias, conv.stride, conv.padding)
    elif _adds_while_writing(x):
        out = conv_sum(x, plus, weight, bias, conv)
    else:
        out = F.conv2d(x, weight, bias, conv.stride, conv.padding) + plus
    return F.relu(out, inplace=True) if relu else out


def _adds_while_writing(x: Tensor) -> bool:
    # torch.compile cannot trace the operator, and makes such sums by itself.
    return (
        SUMS
        and not torch.compiler.is_compiling()
        and x.is_cpu
        and x.dtype == torch.float32
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
    )


def fold(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does ``conv`` and then ``norm`` with its running
    statistics: w·γ/σ and β - µ·γ/σ, made in float32 and laid out channels last."""
    scale = norm.weight.float() * (norm.running_var.float() + norm.eps).rsqrt()
    weight = (conv.weight.float() * scale[:, None, None, None]).to(conv.weight.dtype)
    bias = (norm.bias.float() - norm.running_mean.float() * scale).to(conv.weight.dtype)
    return weight.contiguous(memory_format=torch.channels_last), bias


class DropPathBottleneck(FoldsNorms, Bottleneck):
    """torchvision's bottleneck block whose residual branch a sample skips at ``drop_path``."""

    downsample: Any
    relu: nn.Module

    def __init__(self, *args: Any, drop_path: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        if self.downsample is not None:
            conv, norm = self.downsample
            identity = self.conv_norm(x, conv, norm, "downsample", relu=False)
        out = self.conv_norm(x, self.conv1, self.bn1, "1")
        out = self.conv_norm(out, self.conv2, self.bn2, "2")
        if self.folds():
            return self.conv_norm(out, self.conv3, self.bn3, "3", plus=identity)
        out = self.drop_path(self.conv_norm(out, self.conv3, self.bn3, "3", relu=False))
        return self.relu(identity + out)


class ResNetStem(FoldsNorms):
    """Images [B, 3, H, W] -> features [B, 16·width, H / 16, W / 16].

    Parameter names are torchvision's, so its ResNet weights load (without layer4 and fc).

    stages: blocks in layer1, layer2, layer3. width: channels of the first convolution, 64 in every
    published ResNet. drop_path: stochastic depth, rising linearly from 0 within each stage.
    sync_bn: batch norm over all processes, with OFA's epsilon of 1e-3 for that case.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(
        self,
        stages: Sequence[int],
        width: int = 64,
        drop_path: float = 0.0,
        sync_bn: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels = 16 * width
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        channels = width
        for index, blocks in enumerate(stages):
            planes = width * 2**index
            stage = []
            for block, rate in enumerate(rising_rates(drop_path, blocks)):
                stride = 2 if index > 0 and block == 0 else 1
                stage.append(_block(channels, planes, stride, rate))
                channels = 4 * planes
            setattr(self, f"layer{index + 1}", nn.Sequential(*stage))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif sync_bn and isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-3

    def forward(self, images: Tensor) -> Tensor:
        # Channels last is the layout in which convolutions are fastest, on CPU and on CUDA.
        images = images.contiguous(memory_format=torch.channels_last)
        x = self.maxpool(self.conv_norm(images, self.conv1, self.bn1, "1"))
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
        return x


def _block(channels: int, planes: int, stride: int, drop_path: float) -> DropPathBottleneck:
    downsample = None
    if stride != 1 or channels != 4 * planes:
        downsample = nn.Sequential(
            nn.Conv2d(channels, 4 * planes, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(4 * planes),
        )
    return DropPathBottleneck(channels, planes, stride, downsample, drop_path=drop_path)


def load_resnet_weights(stem: nn.Module, path: str) -> None:
    """Loads torchvision's ResNet weights (a file of them) into the stem.

    Raises ValueError naming what differs if the file belongs to another depth of ResNet.
    """
    weights = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(f"{path} is not a state dict of torchvision's ResNet")
    weights = {k: v for k, v in weights.items() if not k.startswith(("layer4.", "fc."))}
    own = stem.state_dict()
    # Files written before batch norm counted its batches lack the counters.
    for name in own:
        if name.endswith("num_batches_tracked"):
            weights.setdefault(name, own[name])
    wrong = sorted(
        k
        for k in own.keys() | weights.keys()
        if k not in own or k not in weights or own[k].shape != weights[k].shape
    )
    if wrong:
        raise ValueError(
            f"{path} does not fit the stem; check --resnet-type. Differing entries "
            f"({len(wrong)}): {', '.join(wrong[:8])}"
        )
    stem.load_state_dict(weights)
