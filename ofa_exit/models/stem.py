"""The image stem: a ResNet without its fourth stage, stride 16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck
from torchvision.ops import StochasticDepth

from ofa_exit.models import cpu
from ofa_exit.models.checkpoint_file import check_weights, load_file
from ofa_exit.models.positions import ShapeCache


def rising_rates(last: float, count: int) -> list[float]:
    """Return drop-path rates that rise linearly from 0 to ``last``."""
    return [last * i / max(count - 1, 1) for i in range(count)]


def conv_flops(conv: nn.Conv2d, height: int, width: int) -> int:
    """Return the FLOPs of a convolution with an output of H x W cells: 2·H·W·C_out·C_in·k²."""
    return 2 * height * width * conv.weight.numel()


class FusedConvNorm(ShapeCache):
    """Module whose convolutions absorb their batch norms at inference (see ``cpu.ENABLED``)."""

    def conv_norm(self, x: Tensor, conv: Any, norm: Any, relu: bool = True) -> Tensor:
        """Return relu(norm(conv(x))); folded weights stay cached until the module changes."""
        if cpu.ENABLED and not self.training and not torch.is_grad_enabled():
            weight, bias = self.once_per_shape("folded", conv, lambda: fold(conv, norm))
            x = F.conv2d(x, weight, bias, conv.stride, conv.padding)
        else:
            x = norm(conv(x))
        return F.relu(x, inplace=True) if relu else x


def fold(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Return weight and bias of one convolution that equals ``conv`` followed by ``norm``.

    w·γ/σ and β - µ·γ/σ with the running statistics µ and σ², computed in float32. The weight,
    [O, I, k, k], is laid out channels last.
    """
    scale = norm.weight.float() * (norm.running_var.float() + norm.eps).rsqrt()  # [O]
    weight = (conv.weight.float() * scale[:, None, None, None]).to(conv.weight.dtype)
    bias = (norm.bias.float() - norm.running_mean.float() * scale).to(conv.weight.dtype)
    return weight.contiguous(memory_format=torch.channels_last), bias


class DropPathBottleneck(FusedConvNorm, Bottleneck):
    """torchvision's bottleneck block; a sample skips its residual branch at rate ``drop_path``."""

    conv1: nn.Conv2d
    conv2: nn.Conv2d
    conv3: nn.Conv2d
    downsample: Any
    relu: nn.Module
    stride: int

    def __init__(self, *args: Any, drop_path: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor) -> Tensor:
        """Run the block: [B, C_in, H, W] -> [B, 4·planes, H / stride, W / stride]."""
        identity = x
        if self.downsample is not None:
            conv, norm = self.downsample
            identity = self.conv_norm(x, conv, norm, relu=False)
        out = self.conv_norm(x, self.conv1, self.bn1)  # [B, planes, H, W]
        out = self.conv_norm(out, self.conv2, self.bn2)  # [B, planes, H / stride, W / stride]
        out = self.drop_path(self.conv_norm(out, self.conv3, self.bn3, relu=False))
        out += identity
        return self.relu(out)

    def flops(self, height: int, width: int) -> int:
        """Return the FLOPs of the block's convolutions for one image of H x W cells."""
        out_height, out_width = (-(-side // self.stride) for side in (height, width))
        total = conv_flops(self.conv1, height, width)
        for conv in (self.conv2, self.conv3, *(self.downsample or ())[:1]):
            total += conv_flops(conv, out_height, out_width)
        return total


class ResNetStem(FusedConvNorm):
    """Images [B, 3, H, W] -> features [B, 16·width, H / 16, W / 16].

    Parameter names are torchvision's, so its ResNet weights load (without layer4 and fc).

    Args:
        stages: blocks in layer1, layer2 and layer3.
        width: channels of the first convolution, 64 in every published ResNet.
        drop_path: stochastic depth of the last block of a stage; it rises linearly from 0.
        sync_bn: use the epsilon of 1e-3 that OFA has for batch norms over all processes.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(
        self, stages: Sequence[int], width: int = 64, drop_path: float = 0.0, sync_bn: bool = False
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
        # Convolutions are fastest on channels-last tensors, on CPU and on CUDA.
        images = images.contiguous(memory_format=torch.channels_last)
        x = self.conv_norm(images, self.conv1, self.bn1)  # [B, width, H / 2, W / 2]
        x = self.maxpool(x)  # [B, width, H / 4, W / 4]
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)  # the first keeps the size; each of the others halves it
        return x

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of the feature map of an image of H x W pixels."""
        for _ in range(4):
            height, width = _half(height), _half(width)
        return height, width

    def flops(self, height: int, width: int) -> int:
        """Return the FLOPs of one image of H x W pixels: 2·H·W·C_out·C_in·k² per convolution.

        H x W is the size of the convolution's output. Batch norms are not counted.
        """
        height, width = _half(height), _half(width)
        total = conv_flops(self.conv1, height, width)
        height, width = _half(height), _half(width)  # max pooling
        for stage in (self.layer1, self.layer2, self.layer3):
            for block in cast("list[DropPathBottleneck]", stage):
                total += block.flops(height, width)
                if block.stride == 2:
                    height, width = _half(height), _half(width)
        return total


def _half(side: int) -> int:
    return (side + 1) // 2


def _block(channels: int, planes: int, stride: int, drop_path: float) -> DropPathBottleneck:
    downsample = None
    if stride != 1 or channels != 4 * planes:
        downsample = nn.Sequential(
            nn.Conv2d(channels, 4 * planes, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(4 * planes),
        )
    return DropPathBottleneck(channels, planes, stride, downsample, drop_path=drop_path)


def load_resnet_weights(stem: nn.Module, path: str) -> None:
    """Load a file of torchvision's ResNet weights into the stem.

    Raises:
        ValueError: if the file is no state dict, or belongs to a ResNet of another depth.
    """
    weights = load_file(path)
    check_weights(path, weights)
    try:  # torch adds the batch counters that old files lack
        stem.load_state_dict(
            {k: v for k, v in weights.items() if not k.startswith(("layer4.", "fc."))}
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path} does not fit the stem ({reason}). Check --resnet-type."
        ) from error
