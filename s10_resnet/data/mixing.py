"""Two images in one, and a target that is partly either's class: mixup and CutMix, for whole batches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

_MIXING = 2  # sets these draws apart from all others of a batch


def unmixed(key: tuple[int, ...], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The batch as it is: what there is in place of a `Mix` where nothing is mixed."""
    return images, labels


class Mix:
    """Mixes each image of a batch with another one of it.

    ``mixup`` blends the pixels (Zhang et al. 2018, https://arxiv.org/abs/1710.09412), ``cutmix`` pastes a rectangle of
    the other image (Yun et al. 2019, https://arxiv.org/abs/1905.04899), which is cut off where it hangs over the edge.
    The shares follow Beta(alpha, alpha), drawn for every image.

    Args:
        kind: ``mixup`` or ``cutmix``.
        alpha: Below 1 one of the two images mostly prevails; at 1 all shares are equally likely.
        classes: How many there are.
        epochs: In which epochs, counted from 0; batches of others stay as they are.
    """

    def __init__(self, kind: str, *, alpha: float, classes: int, epochs: range) -> None:
        self.kind, self.alpha, self.classes, self.epochs = kind, alpha, classes, epochs

    def __call__(self, key: tuple[int, int, int, int], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes a batch; what comes out is a function of key and batch alone.

        Args:
            key: Of the batch's plan: seed, epoch, batch index, rank.
            images: uint8 ``[B, H, W, C]``.
            labels: int64 ``[B]``, on the images' device.

        Returns:
            uint8 ``[B, H, W, C]``, and as targets the shares of the classes, float32 ``[B, classes]``; outside its
            epochs the batch itself.
        """
        if key[1] not in self.epochs:
            return images, labels
        count, height, width, _ = images.shape
        rng = np.random.default_rng(np.random.SeedSequence(key, spawn_key=(_MIXING,)))
        partner, share = rng.permutation(count), rng.beta(self.alpha, self.alpha, count)
        if self.kind == "cutmix":
            inside = _rectangles(rng, 1 - share, height, width)  # [B, H, W]
            share = 1 - inside.mean((1, 2))
            mask = torch.from_numpy(inside)[..., None].to(images.device, non_blocking=True)
        partner = torch.from_numpy(partner).to(images.device, non_blocking=True)
        share = torch.from_numpy(share.astype(np.float32)).to(images.device, non_blocking=True)
        other = images[partner]
        if self.kind == "cutmix":
            mixed = torch.where(mask, other, images)
        else:
            mixed = torch.lerp(other.float(), images.float(), share[:, None, None, None]).round().to(torch.uint8)
        ones = F.one_hot(labels, self.classes).float()
        return mixed, torch.lerp(ones[partner], ones, share[:, None])


def _rectangles(rng: np.random.Generator, areas: np.ndarray, height: int, width: int) -> np.ndarray:
    """For each share of the image's area a rectangle of its proportions around a random pixel, bool ``[B, H, W]``."""
    inside = []
    for size in (height, width):
        half = np.round(size * np.sqrt(areas) / 2)[:, None]
        centre = rng.integers(0, size, (len(areas), 1))
        inside.append((np.arange(size) >= centre - half) & (np.arange(size) < centre + half))
    return inside[0][:, :, None] & inside[1][:, None]
