"""The network: a nine-layer ResNet from raw pixels to logits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Normalizes raw pixels.

    As a layer of the network it runs on the device, and its statistics are saved with the weights. A uint8 NHWC batch
    is in channels-last memory already: the permutation is a view, and a quarter of the bytes of a float batch are
    copied to the device.

    Args:
        mean: Channel means as fractions of 1.
        std: Channel standard deviations as fractions of 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:  # uint8 [B, 32, 32, 3]
        x = images.permute(0, 3, 1, 2).float()  # [B, 3, 32, 32], channels-last
        return (x - self.mean) / self.std


class Residual(nn.Module):
    """Adds the output of a block to its input: ``x + block(x)``."""

    def __init__(self, *block: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*block)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


def conv_block(in_channels: int, out_channels: int, *, pool: bool = False) -> nn.Sequential:
    """Returns a 3x3 convolution, an optional 2x2 max-pool, BatchNorm and ReLU.

    The pool comes before BatchNorm, as in the assignment that defines this network; in David Page's it is last.
    """
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
            pool=nn.MaxPool2d(2) if pool else nn.Identity(),
            norm=nn.BatchNorm2d(out_channels),
            relu=nn.ReLU(inplace=True),
        )
    )


class ResNet9(nn.Module):
    """The custom ResNet of the assignment, after David Page's ResNet-9 (https://github.com/davidcpage/cifar10-fast).

    379.26 M multiply-adds per image: 0.759 GFLOP forward, 2.28 GFLOP for a training step.

    Args:
        num_classes: Number of logits.
        logit_scale: Constant factor on the logits; below 1 it softens the cross entropy (0.125 in Page's networks).
    """

    def __init__(self, num_classes: int = 10, logit_scale: float = 0.125) -> None:
        super().__init__()
        self.prep = conv_block(3, 64)
        self.layer1 = nn.Sequential(
            conv_block(64, 128, pool=True), Residual(conv_block(128, 128), conv_block(128, 128))
        )
        self.layer2 = conv_block(128, 256, pool=True)
        self.layer3 = nn.Sequential(
            conv_block(256, 512, pool=True), Residual(conv_block(512, 512), conv_block(512, 512))
        )
        self.pool = nn.MaxPool2d(4)
        self.linear = nn.Linear(512, num_classes, bias=False)
        self.logit_scale = logit_scale

    def forward(self, x: Tensor) -> Tensor:  # [B, 3, 32, 32]
        x = self.prep(x)  # [B, 64, 32, 32]
        x = self.layer1(x)  # [B, 128, 16, 16]
        x = self.layer2(x)  # [B, 256, 8, 8]
        x = self.layer3(x)  # [B, 512, 4, 4]
        x = self.pool(x).flatten(1)  # [B, 512]
        return self.linear(x) * self.logit_scale  # [B, num_classes]


def build_model(
    mean: Sequence[float], std: Sequence[float], *, num_classes: int = 10, logit_scale: float = 0.125
) -> nn.Sequential:
    """Returns the network that is trained and saved: ``normalize``, a `Normalize`, then ``resnet``, a `ResNet9`.

    It computes logits ``[B, num_classes]`` of uint8 images ``[B, 32, 32, 3]``; its weights are in channels-last memory.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        normalize=Normalize(mean, std), resnet=ResNet9(num_classes, logit_scale)
    )
    return nn.Sequential(layers).to(memory_format=torch.channels_last)


def count_parameters(model: nn.Module) -> int:
    """Returns the number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())
