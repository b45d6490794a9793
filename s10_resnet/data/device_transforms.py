"""The augmentation of `transforms.train_transform` as tensor operations on whole batches, on any device.

The results equal those of Albumentations to the pixel, given the same random parameters. Transforms and options that
are not reproduced raise an error.

Crops and flips only move pixels, so a sequence of them is a single gather. `DeviceTransform.apply` goes through the
transforms in reverse and keeps, for every output row and column, the row and column of its input.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from s10_resnet.data.transforms import A

Shape = tuple[int, ...]  # height, width, channels


class DeviceTransform:
    """Applies an Albumentations transform to batches, with random parameters of the same distributions.

    Supported are ``RandomCrop`` without padding, ``HorizontalFlip``, and ``CoarseDropout`` with one hole of a fixed
    size in pixels and a fixed fill, in any number and order. Parameters are drawn from the generator passed to
    `sample_params`: the seed and state of ``compose`` have no effect. Written for Albumentations 2.0.8.

    Args:
        compose: The transform.
        image_shape: Height, width and channels of the input images.

    Attributes:
        output_shape: Height, width and channels of the output images.

    Raises:
        ValueError: If ``compose`` has a transform or an option that is not supported, or a crop or a hole larger than
            its image.
    """

    def __init__(self, compose: A.Compose, image_shape: Shape) -> None:
        if type(compose) is not A.Compose or compose.p != 1:
            raise ValueError(f"only a plain Compose with p=1 can be applied on the device, not {compose}")
        self.image_shape = tuple(image_shape)
        self._steps: list[_Step] = []
        self.output_shape = self.image_shape
        for transform in compose.transforms:
            step = _STEPS.get(type(transform))
            if step is None:
                supported = ", ".join(known.__name__ for known in _STEPS)
                raise ValueError(f"{type(transform).__name__} cannot be applied on the device, only {supported}")
            self._steps.append(step(transform, self.output_shape))
            self.output_shape = self._steps[-1].output_shape

    def sample_params(self, rng: np.random.Generator, count: int) -> Tensor:
        """Draws the random parameters of ``count`` images.

        Returns:
            int64 ``[count, K]`` on the CPU, with the columns of one transform after the other: top and left of a crop;
            1 for a flip, else 0; top and left of a hole, or minus its height and width for no hole.
        """
        params = [step.sample_params(rng, count) for step in self._steps]
        return torch.from_numpy(np.hstack([np.empty((count, 0), np.int64), *params]))

    def apply(self, images: Tensor, params: Tensor, indices: Tensor) -> Tensor:
        """Transforms a batch, without synchronizing with the device or copying anything to it.

        Args:
            images: uint8 ``[N, H, W, C]``; if it is not contiguous, every call copies all of it.
            params: From `sample_params`, int64 ``[B, K]``, on the device of ``images``.
            indices: int64 ``[B]``, on the same device: the images of the batch. A data set on the device is indexed
                and transformed by the same gather.

        Returns:
            uint8 ``[B, h, w, C]``, contiguous, in memory of its own.

        Raises:
            ValueError: If the type, shape or number of ``images`` does not fit.
        """
        height, width, channels = self.image_shape
        if images.dtype != torch.uint8 or images.shape[1:] != self.image_shape:
            given = f"{images.dtype} {tuple(images.shape[1:])}"
            raise ValueError(f"images must be torch.uint8 {self.image_shape}, not {given}")
        if len(indices) != len(params):
            raise ValueError(f"params are of {len(params)} images, the batch has {len(indices)}")

        rows, columns = (torch.arange(side, device=images.device)[None] for side in self.output_shape[:2])
        source = _Source(rows, columns, holes=())
        params_of_steps = params.split([step.num_params for step in self._steps], dim=1)
        for step, step_params in zip(reversed(self._steps), reversed(params_of_steps), strict=True):
            source = step.trace_back(source, step_params)

        rows = indices[:, None] * height + source.rows  # [B, h], of all images as one [N * H, W, C]
        pixels = rows[:, :, None] * width + source.columns[:, None]  # [B, h, w], of all images as one [N * H * W, C]
        batch = images.flatten(0, 2).index_select(0, pixels.flatten()).view(*pixels.shape, channels)
        for mask, fill in source.holes:
            for channel, value in enumerate(fill):  # as a number: a tensor would have to be copied to the device
                batch[..., channel].masked_fill_(mask, value)
        return batch


class _Source(NamedTuple):
    """Where the output pixels come from: their place in the input of a step, and the holes of the steps after it."""

    rows: Tensor  # int64 [1 or B, h]
    columns: Tensor  # int64 [1 or B, w]
    holes: tuple[tuple[Tensor, tuple[int, ...]], ...]  # mask bool [B, h, w] and fill per channel; the last is on top


class _RandomCrop:
    num_params = 2

    def __init__(self, transform: A.RandomCrop, image_shape: Shape) -> None:
        height, width, channels = image_shape
        fits = transform.height <= height and transform.width <= width
        _check_options(transform, fits, varied=("height", "width"))
        self.output_shape = (transform.height, transform.width, channels)
        self.positions = (height - transform.height + 1, width - transform.width + 1)

    def sample_params(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.integers(0, self.positions, (count, 2))

    def trace_back(self, source: _Source, params: Tensor) -> _Source:
        top, left = params.split(1, dim=1)
        return source._replace(rows=source.rows + top, columns=source.columns + left)


class _HorizontalFlip:
    num_params = 1

    def __init__(self, transform: A.HorizontalFlip, image_shape: Shape) -> None:
        _check_options(transform, True, varied=("p",))
        self.output_shape, self.p = image_shape, transform.p

    def sample_params(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return (rng.random((count, 1)) < self.p).astype(np.int64)

    def trace_back(self, source: _Source, params: Tensor) -> _Source:
        flipped = self.output_shape[1] - 1 - source.columns
        return source._replace(columns=torch.where(params == 1, flipped, source.columns))


class _CoarseDropout:
    num_params = 2

    def __init__(self, transform: A.CoarseDropout, image_shape: Shape) -> None:
        height, width, channels = image_shape
        fill = transform.fill if isinstance(transform.fill, tuple) else (transform.fill,) * channels
        self.size = transform.hole_height_range[0], transform.hole_width_range[0]
        fixed = (
            transform.num_holes_range == (1, 1)
            and transform.hole_height_range == (self.size[0],) * 2
            and transform.hole_width_range == (self.size[1],) * 2
            and all(isinstance(side, int) for side in self.size)
            and 1 <= self.size[0] <= height
            and 1 <= self.size[1] <= width
            and len(fill) == channels
            and all(isinstance(value, int | float) and 0 <= value <= 255 for value in fill)
        )
        _check_options(
            transform, fixed, varied=("num_holes_range", "hole_height_range", "hole_width_range", "fill", "p")
        )
        self.output_shape, self.p = image_shape, transform.p
        self.fill = tuple(int(value) for value in fill)  # Albumentations holds floats, and truncates them
        self.positions = (height - self.size[0] + 1, width - self.size[1] + 1)

    def sample_params(self, rng: np.random.Generator, count: int) -> np.ndarray:
        has_hole = rng.random((count, 1)) < self.p
        return np.where(has_hole, rng.integers(0, self.positions, (count, 2)), np.negative(self.size))

    def trace_back(self, source: _Source, params: Tensor) -> _Source:
        (height, width), (top, left) = self.size, params.split(1, dim=1)
        in_rows = (source.rows >= top) & (source.rows < top + height)  # [B, h]
        in_columns = (source.columns >= left) & (source.columns < left + width)  # [B, w]
        mask = in_rows[:, :, None] & in_columns[:, None]  # [B, h, w]
        return source._replace(holes=((mask, self.fill), *source.holes))


_Step = _RandomCrop | _HorizontalFlip | _CoarseDropout
_STEPS: dict[type, Callable[[Any, Shape], _Step]] = {
    A.RandomCrop: _RandomCrop,
    A.HorizontalFlip: _HorizontalFlip,
    A.CoarseDropout: _CoarseDropout,
}


def _check_options(transform: A.BasicTransform, condition: bool, varied: tuple[str, ...]) -> None:
    """Raises an error unless the condition holds and all options but the varied ones have their default."""
    options = inspect.signature(type(transform)).parameters.items()
    defaults = all(name in varied or getattr(transform, name) == option.default for name, option in options)
    if not (condition and defaults):
        raise ValueError(f"these options cannot be applied on the device: {transform}")
