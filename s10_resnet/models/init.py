"""Initial weights other than PyTorch's defaults."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

WHITENING_EPS = 5e-4  # added to every variance: directions with almost none would be scaled up to noise


@torch.no_grad()
def dirac_init_(model: nn.Module) -> None:
    """Initializes all convolutions but the first to pass their input on, as in Keller Jordan's airbench.

    The first ``in_channels`` filters copy one channel each (`torch.nn.init.dirac_`); the others keep their values.
    See https://arxiv.org/abs/2404.00498.
    """
    for conv in _convolutions(model)[1:]:
        nn.init.dirac_(conv.weight[: conv.in_channels])


@torch.no_grad()
def whitening_init_(model: nn.Module, images: Tensor) -> None:
    """Initializes the first convolution with the principal directions of its input patches, and freezes it.

    Each direction is divided by its standard deviation, so that the responses are uncorrelated and have variance 1. It
    is used with both signs, because ReLU keeps one side only; the remaining filters keep their values. The idea is
    David Page's (https://github.com/davidcpage/cifar10-fast), the two signs are from Tysam's hlb-CIFAR10. Frozen, the
    filters keep whitening: weight decay would wear them off.

    Args:
        model: Its first convolution must have at least twice as many filters as a patch has values.
        images: Inputs of that convolution, float ``[N, C, H, W]``.
    """
    conv = _convolutions(model)[0]
    patches = F.unfold(images.float(), conv.kernel_size).transpose(1, 2).flatten(0, 1)  # [N * positions, values]
    values = patches.shape[1]
    variances, directions = torch.linalg.eigh(patches.T.cov().double())  # directions are columns
    filters = (directions / (variances + WHITENING_EPS).sqrt()).T.flip(0).view(values, *conv.weight.shape[1:])
    conv.weight[: 2 * values] = torch.cat([filters, -filters]).to(conv.weight)
    conv.weight.requires_grad_(False)


def _convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """Returns the convolutions in the order of the forward pass."""
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]
