"""Test-time augmentation: an image is looked at in several ways, and the logits are averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

View = Callable[[Tensor], Tensor]  # uint8 [B, H, W, 3] to the same shape


def plain(images: Tensor) -> Tensor:
    """The images as they are."""
    return images


def mirrored(images: Tensor) -> Tensor:
    """Left and right exchanged."""
    return images.flip(2)


def shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Moved by whole pixels; what comes in at the border is its mirror image, edge pixels not repeated."""
    _, height, width, _ = images.shape
    rows = _reflected(torch.arange(height, device=images.device) - down, height)
    columns = _reflected(torch.arange(width, device=images.device) - right, width)
    return images[:, rows][:, :, columns]


FLIP: Sequence[tuple[float, View]] = ((0.5, plain), (0.5, mirrored))
VIEWS: dict[str, Sequence[tuple[float, View]]] = {
    "none": ((1.0, plain),),
    "flip": FLIP,
    "six": (
        *((weight / 2, view) for weight, view in FLIP),
        *(
            (weight / 4, lambda images, view=view, by=by: view(shifted(images, by, by)))
            for by in (-1, 1)
            for weight, view in FLIP
        ),
    ),
}


class Averaged(nn.Module):
    """A network that averages its logits over several views of its images.

    ``six`` is half the mirror pair and half the mean of the mirror pairs of the image shifted by one pixel along the
    diagonal, up to the left and down to the right, after Keller Jordan's airbench
    (https://github.com/KellerJordan/cifar10-airbench).

    Args:
        network: From uint8 ``[B, 32, 32, 3]`` to logits ``[B, C]``.
        views: ``none``, ``flip`` or ``six``.
    """

    def __init__(self, network: nn.Module, views: str) -> None:
        super().__init__()
        self.network, self.views = network, VIEWS[views]

    def forward(self, images: Tensor) -> Tensor:  # uint8 [B, 32, 32, 3]
        return sum(weight * self.network(view(images)).float() for weight, view in self.views)  # [B, C]


def _reflected(places: Tensor, size: int) -> Tensor:
    return size - 1 - (size - 1 - places.abs()).abs()
