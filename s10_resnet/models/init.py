"""Weights to begin with that already do something useful."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

WHITENED_VARIANCE = 5e-4  # added to every variance, so that directions with next to none are not blown up to noise


@torch.no_grad()
def dirac(network: nn.Module) -> None:
    """Lets every convolution but the first begin by passing its input on.

    As many filters as there are input channels copy a channel each (`torch.nn.init.dirac_`); the others stay as drawn.
    From Keller Jordan's airbench (https://arxiv.org/abs/2404.00498).
    """
    for conv in _convolutions(network)[1:]:
        nn.init.dirac_(conv.weight[: conv.in_channels])


@torch.no_grad()
def whiten(network: nn.Module, images: Tensor) -> None:
    """Sets filters of the first convolution to the principal directions of the patches that it sees.

    Each direction is divided by its standard deviation, so that the responses are uncorrelated and of variance 1, and
    taken with both signs, because ReLU keeps one side only; filters that are left over stay as they are drawn. The idea
    is David Page's (https://github.com/davidcpage/cifar10-fast), the two signs are Tysam's hlb-CIFAR10.

    Args:
        network: Its first convolution has at least twice as many filters as a patch has values.
        images: What that convolution sees, float ``[N, C, H, W]``.

    Raises:
        ValueError: If there are not filters enough.
    """
    conv = _convolutions(network)[0]
    patches = F.unfold(images.float(), conv.kernel_size).transpose(1, 2).flatten(0, 1)  # [N * places, values]
    values = patches.shape[1]
    if conv.out_channels < 2 * values:
        raise ValueError(f"{conv.out_channels} filters are too few for {values} directions with two signs each")
    variances, directions = torch.linalg.eigh(patches.T.cov().double())  # directions are columns
    filters = (directions / (variances + WHITENED_VARIANCE).sqrt()).T.flip(0).view(values, *conv.weight.shape[1:])
    conv.weight[: 2 * values] = torch.cat([filters, -filters]).to(conv.weight)


def _convolutions(network: nn.Module) -> list[nn.Conv2d]:
    """In the order of the way through the network."""
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]
