"""The augmentation of `transforms.train_transform` as tensor operations on whole batches, on any device.

The results equal those of Albumentations to the pixel, given the same random parameters.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s10_resnet.data.transforms import A

SUPPORTED = (A.RandomCrop, A.HorizontalFlip, A.CoarseDropout)


class DeviceTransform:
    """Applies an Albumentations transform to batches, with random parameters of the same distributions.

    Supported are ``RandomCrop`` without padding, ``HorizontalFlip``, and ``CoarseDropout`` with one hole of a fixed
    size in pixels and a fixed fill, each at most once and in this order. Parameters are drawn from the generator passed
    to `sample_params`: the seed and state of ``compose`` have no effect. Written for Albumentations 2.0.8.

    Args:
        compose: The transform.
        image_shape: Height, width and channels of the input images.

    Attributes:
        output_shape: Height, width and channels of the output images.

    Raises:
        ValueError: If ``compose`` has a transform or an option that is not supported, or a crop or a hole larger than
            its image.
    """

    def __init__(self, compose: A.Compose, image_shape: tuple[int, ...]) -> None:
        if type(compose) is not A.Compose or compose.p != 1:
            raise ValueError(f"only a plain Compose with p=1 can be applied on the device, not {compose}")
        steps: dict[type, Any] = {type(step): step for step in compose.transforms}
        if [type(step) for step in compose.transforms] != [kind for kind in SUPPORTED if kind in steps]:
            given, supported = (", ".join(kind.__name__ for kind in kinds) for kinds in (steps, SUPPORTED))
            raise ValueError(f"{given} cannot be applied on the device, only {supported}, in this order")
        self.image_shape = height, width, channels = tuple(image_shape)
        self.crop, self.flip, self.dropout = (steps.get(kind) for kind in SUPPORTED)
        if self.crop:
            fits = self.crop.height <= height and self.crop.width <= width
            _check_options(self.crop, fits, varied=("height", "width"))
            self.crop_positions = height - self.crop.height + 1, width - self.crop.width + 1
            height, width = self.crop.height, self.crop.width
        self.output_shape = height, width, channels
        if self.flip:
            _check_options(self.flip, True, varied=("p",))
        if self.dropout:
            fill = self.dropout.fill if isinstance(self.dropout.fill, tuple) else (self.dropout.fill,) * channels
            ranges = self.dropout.hole_height_range, self.dropout.hole_width_range
            self.hole_size = ranges[0][0], ranges[1][0]
            fixed = (
                self.dropout.num_holes_range == (1, 1)
                and all(low == high and isinstance(low, int) for low, high in ranges)
                and 1 <= self.hole_size[0] <= height
                and 1 <= self.hole_size[1] <= width
                and len(fill) == channels
                and all(isinstance(value, int | float) and 0 <= value <= 255 for value in fill)
            )
            varied = ("num_holes_range", "hole_height_range", "hole_width_range", "fill", "p")
            _check_options(self.dropout, fixed, varied)
            self.fill = [int(value) for value in fill]  # Albumentations holds floats, and truncates them
            self.hole_positions = height - self.hole_size[0] + 1, width - self.hole_size[1] + 1

    def sample_params(self, rng: np.random.Generator, count: int) -> Tensor:
        """Draws the random parameters of ``count`` images.

        Returns:
            int64 ``[count, 5]`` on the CPU: top and left of the crop; 1 for a flip, else 0; top and left of the hole,
            or minus its height and width for no hole.
        """
        params = np.zeros((count, 5), np.int64)
        if self.crop:
            params[:, :2] = rng.integers(0, self.crop_positions, (count, 2))
        if self.flip:
            params[:, 2] = rng.random(count) < self.flip.p
        if self.dropout:
            has_hole = rng.random((count, 1)) < self.dropout.p
            positions = rng.integers(0, self.hole_positions, (count, 2))
            params[:, 3:] = np.where(has_hole, positions, np.negative(self.hole_size))
        return torch.from_numpy(params)

    def apply(self, images: Tensor, params: Tensor, indices: Tensor) -> Tensor:
        """Transforms a batch, without synchronizing with the device or copying anything to it.

        Args:
            images: uint8 ``[N, H, W, C]``; if it is not contiguous, every call copies all of it.
            params: From `sample_params`, int64 ``[B, 5]``, on the device of ``images``.
            indices: int64 ``[B]``, on the same device: the images of the batch. A data set on the device is indexed
                and transformed by the same gather.

        Returns:
            uint8 ``[B, h, w, C]``, contiguous, in memory of its own.

        Raises:
            ValueError: If the type, shape or number of ``images`` does not fit.
        """
        if images.dtype != torch.uint8 or images.shape[1:] != self.image_shape:
            given = f"{images.dtype} {tuple(images.shape[1:])}"
            raise ValueError(f"images must be torch.uint8 {self.image_shape}, not {given}")
        if len(indices) != len(params):
            raise ValueError(f"params are of {len(params)} images, the batch has {len(indices)}")
        top, left, flipped, hole_top, hole_left = params.split(1, dim=1)  # [B, 1] each
        rows, columns = (torch.arange(side, device=images.device)[None] for side in self.output_shape[:2])

        # Crop and flip only move pixels: the gather takes each from its place in the input.
        height, width, channels = self.image_shape
        input_rows = indices[:, None] * height + top + rows  # [B, h], of all images as one [N * H, W, C]
        input_columns = left + torch.where(flipped == 1, self.output_shape[1] - 1 - columns, columns)  # [B, w]
        pixels = input_rows[:, :, None] * width + input_columns[:, None]  # [B, h, w], of [N * H * W, C]
        batch = images.flatten(0, 2).index_select(0, pixels.flatten()).view(*pixels.shape, channels)
        if self.dropout:
            in_rows = (rows >= hole_top) & (rows < hole_top + self.hole_size[0])  # [B, h]
            in_columns = (columns >= hole_left) & (columns < hole_left + self.hole_size[1])  # [B, w]
            hole = in_rows[:, :, None] & in_columns[:, None]  # [B, h, w]
            for channel, value in enumerate(self.fill):  # as a number: a tensor would have to be copied to the device
                batch[..., channel].masked_fill_(hole, value)
        return batch


def _check_options(transform: A.BasicTransform, condition: bool, varied: tuple[str, ...]) -> None:
    """Raises an error unless the condition holds and all options but the varied ones have their default."""
    options = inspect.signature(type(transform)).parameters.items()
    defaults = all(name in varied or getattr(transform, name) == option.default for name, option in options)
    if not (condition and defaults):
        raise ValueError(f"these options cannot be applied on the device: {transform}")
