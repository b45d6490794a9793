"""The augmentation of `transforms.train_transform` as tensor operations on whole batches, on any device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from s10_resnet.data.transforms import MEAN_PIXEL


@dataclass(frozen=True)
class DeviceTransform:
    """`train_transform` for batches.

    Random parameters are distributed as Albumentations 2.0.8 draws them, and equal parameters give equal pixels.
    """

    crop_padding: int  # by which the images were padded on each side; 0 disables the crop
    flip: bool
    cutout_size: int

    def sample_params(self, rng: np.random.Generator, count: int) -> Tensor:
        """Draws the random parameters of ``count`` images.

        Returns:
            int64 ``[count, 5]``: top and left of the crop, whether to flip, top and left of the hole.
        """
        params = np.zeros((count, 5), np.int64)
        if self.crop_padding:
            params[:, :2] = rng.integers(0, 2 * self.crop_padding + 1, (count, 2))
        if self.flip:
            params[:, 2] = rng.random(count) < 0.5
        if self.cutout_size:
            rng.random(count)  # decides nothing; published results are of random streams that have it
            params[:, 3:] = rng.integers(0, 32 - self.cutout_size + 1, (count, 2))
        return torch.from_numpy(params)

    def apply(self, images: Tensor, indices: Tensor, params: Tensor) -> Tensor:
        """Transforms the images of a batch, without synchronizing with the device or copying anything to it.

        Args:
            images: Of the whole data set, padded: uint8 ``[N, S, S, 3]``, contiguous.
            indices: Of the batch, int64 ``[B]``.
            params: From `sample_params`, ``[B, 5]``.

        Returns:
            uint8 ``[B, 32, 32, 3]``.
        """
        top, left, flipped, hole_top, hole_left = params.split(1, dim=1)  # [B, 1] each
        pixels = torch.arange(32, device=images.device)

        # Crop and flip only move pixels: one gather takes each from its place in the data set.
        size = images.shape[1]
        rows = indices[:, None] * size + top + pixels  # [B, 32], of all N * S
        columns = left + torch.where(flipped == 1, 31 - pixels, pixels)  # [B, 32], of S
        places = rows[:, :, None] * size + columns[:, None]  # [B, 32, 32], of all N * S * S
        batch = images.view(-1, 3).index_select(0, places.flatten()).view(-1, 32, 32, 3)

        if self.cutout_size:
            in_rows = (pixels >= hole_top) & (pixels < hole_top + self.cutout_size)  # [B, 32]
            in_columns = (pixels >= hole_left) & (pixels < hole_left + self.cutout_size)  # [B, 32]
            hole = in_rows[:, :, None] & in_columns[:, None]  # [B, 32, 32]
            for channel, value in enumerate(MEAN_PIXEL):  # numbers: a tensor would have to be copied to the device
                batch[..., channel].masked_fill_(hole, value)
        return batch
