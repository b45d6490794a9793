"""The network: a nine-layer ResNet that takes raw pixels and gives logits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Turns raw pixels into what a convolution wants; as a layer it runs on the device and travels with the weights.

    A uint8 NHWC batch is channels-last memory already: the permutation is a view, so a quarter of the bytes of a float
    batch cross to the device and no copy is made for the layout.

    Args:
        mean: Channel means as fractions of 1.
        std: Channel standard deviations as fractions of 1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:  # uint8 [B, 32, 32, 3]
        x = images.permute(0, 3, 1, 2).float()  # [B, 3, 32, 32], channels-last
        return (x - self.mean) / self.std


class Residual(nn.Module):
    """Adds a block's output to its input: ``x + block(x)``."""

    def __init__(self, *block: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*block)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


def conv_block(in_channels: int, out_channels: int, *, pool: bool = False, norm_momentum: float) -> nn.Sequential:
    """3x3 convolution, 2x2 max-pool if asked for, BatchNorm, ReLU.

    The pool stands before BatchNorm, as in the assignment this network comes from; David Page's original has it last.
    """
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
            pool=nn.MaxPool2d(2) if pool else nn.Identity(),
            norm=nn.BatchNorm2d(out_channels, momentum=norm_momentum),
            relu=nn.ReLU(inplace=True),
        )
    )


class ResNet9(nn.Module):
    """The custom ResNet of the assignment, after David Page's ResNet-9 (https://github.com/davidcpage/cifar10-fast).

    379.26 M multiply-adds for one image: 0.759 GFLOP forward, 2.28 GFLOP for a training step.

    Args:
        classes: Number of logits.
        logit_scale: Constant factor on the logits; below 1 it softens the cross entropy (0.125 in Page's networks).
        norm_momentum: Share of a batch's statistics in BatchNorm's running ones.
    """

    def __init__(self, classes: int = 10, logit_scale: float = 0.125, norm_momentum: float = 0.1) -> None:
        super().__init__()
        block = partial(conv_block, norm_momentum=norm_momentum)
        self.prep = block(3, 64)
        self.layer1 = nn.Sequential(block(64, 128, pool=True), Residual(block(128, 128), block(128, 128)))
        self.layer2 = block(128, 256, pool=True)
        self.layer3 = nn.Sequential(block(256, 512, pool=True), Residual(block(512, 512), block(512, 512)))
        self.pool = nn.MaxPool2d(4)
        self.linear = nn.Linear(512, classes, bias=False)
        self.logit_scale = logit_scale

    def forward(self, x: Tensor) -> Tensor:  # [B, 3, 32, 32]
        x = self.prep(x)  # [B, 64, 32, 32]
        x = self.layer1(x)  # [B, 128, 16, 16]
        x = self.layer2(x)  # [B, 256, 8, 8]
        x = self.layer3(x)  # [B, 512, 4, 4]
        x = self.pool(x).flatten(1)  # [B, 512]
        return self.linear(x) * self.logit_scale  # [B, classes]


def build_network(
    mean: Sequence[float],
    std: Sequence[float],
    *,
    classes: int = 10,
    logit_scale: float = 0.125,
    norm_momentum: float = 0.1,
) -> nn.Sequential:
    """The trained unit: pixels in, logits out.

    Args:
        mean: Channel means of the training images as fractions of 1.
        std: Channel standard deviations as fractions of 1.
        classes: Number of logits.
        logit_scale: See `ResNet9`.
        norm_momentum: See `ResNet9`.

    Returns:
        A module from uint8 ``[B, 32, 32, 3]`` to logits ``[B, classes]``, its weights in channels-last memory.
    """
    layers = OrderedDict(normalize=Normalize(mean, std), resnet=ResNet9(classes, logit_scale, norm_momentum))
    return nn.Sequential(layers).to(memory_format=torch.channels_last)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
