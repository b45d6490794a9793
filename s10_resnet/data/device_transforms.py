"""The declared augmentation for whole batches: what `transforms.train_transform` says, in a few tensor operations.

Albumentations says what is done and with which odds; this module does the same to all images of a batch at once, on the
device that they are on. What it cannot do to the pixel, it refuses.

Crops and flips only move pixels, so that all of them together are one gather, whatever their number and order. The
steps are followed back from the result to the images, and each says where the pixels after it were before it.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from s10_resnet.data.transforms import A  # by way of its one importer, which keeps it off the network

Shape = tuple[int, int, int]  # height, width, channels


class BatchedTransform:
    """Runs a declared transform on batches, with draws of the distributions that Albumentations 2.0.8 draws from.

    Any number of these steps is done, in any order: ``RandomCrop`` without padding, ``HorizontalFlip``, and
    ``CoarseDropout`` with one hole of a fixed size in pixels and a fixed fill. The draws come from the generator given
    to `draw`; the state and the seed of ``compose`` play no part.

    Args:
        compose: The declaration; read here once.
        shape: Height, width and channels of the images.

    Raises:
        ValueError: ``compose`` has a step or an option of a step that is not reproduced, or one that images of this
            shape have no room for.
    """

    def __init__(self, compose: A.Compose, shape: Shape) -> None:
        if type(compose) is not A.Compose:
            raise ValueError(f"{type(compose).__name__} is not done here, only Compose")
        if compose.p != 1:
            raise _refusal(compose, "p", compose.p, "1.0")
        if targets := [*compose.processors, *compose.additional_targets]:
            raise ValueError(f"Compose with {', '.join(targets)} is not done here, only with image")
        self.shape: Shape = tuple(shape)
        self._steps: list[_Crop | _Flip | _Hole] = []
        result = self.shape
        for declared in compose.transforms:
            step = _STEPS.get(type(declared))
            if step is None:
                known = ", ".join(transform.__name__ for transform in _STEPS)
                raise ValueError(f"{type(declared).__name__} is not done here, only {known}")
            self._steps.append(step(declared, result))
            result = self._steps[-1].shape
        self.result: Shape = result  # of an image afterwards

    def draw(self, rng: np.random.Generator, count: int) -> Tensor:
        """Draws for some images, each for itself.

        Returns:
            int64 ``[count, K]`` on the CPU. The columns follow the steps: top and left of a crop; 1 for a flip, else 0;
            top and left of a hole, or minus its height and width where the image is spared.
        """
        draws = [step.draw(rng, count) for step in self._steps]
        return torch.from_numpy(np.hstack([np.empty((count, 0), np.int64), *draws]))

    def apply(self, images: Tensor, draws: Tensor, samples: Tensor | None = None) -> Tensor:
        """Makes a batch, without a look at any value and without a copy to the device: nobody waits for it.

        Args:
            images: uint8 ``[N, H, W, C]``, contiguous, or every call copies all of them.
            draws: Of `draw`, ``[B, K]``, on the device of the images.
            samples: int64 ``[B]``, on the same device: which of the images make the batch, so that a data set on the
                device needs no gather of its own; all of them, in their order, if left out.

        Returns:
            uint8 ``[B, h, w, C]``, contiguous, in memory of its own.

        Raises:
            ValueError: The images are of another type or shape than the transform was made for, or not one each for
                the draws.
        """
        height, width, channels = self.shape
        if images.dtype != torch.uint8 or images.shape[1:] != self.shape:
            found = f"{images.dtype} {tuple(images.shape[1:])}"
            raise ValueError(f"the images are {found}, and the transform is for torch.uint8 {self.shape}")
        if samples is None:
            samples = torch.arange(len(images), device=images.device)
        if len(samples) != len(draws):
            raise ValueError(f"there are draws for {len(draws)} images, and {len(samples)} images")

        origin = _Origin(*(torch.arange(side, device=images.device)[None] for side in self.result[:2]), ())
        drawn = draws.split([step.draws for step in self._steps], dim=1)
        for step, own in zip(reversed(self._steps), reversed(drawn), strict=True):
            origin = step.before(origin, own)

        lines = samples[:, None] * height + origin.rows  # [B, h], of all images below one another
        pixels = lines[:, :, None] * width + origin.columns[:, None]  # [B, h, w], of all lines in a row
        batch = images.flatten(0, 2).index_select(0, pixels.flatten()).view(*pixels.shape, channels)
        for inside, fill in origin.holes:
            for channel, value in enumerate(fill):  # a number is part of the kernel; a tensor would have to be copied
                batch[..., channel].masked_fill_(inside, value)
        return batch


class _Origin(NamedTuple):
    """Where the pixels of a batch were before some of the steps, and what the steps after that painted over."""

    rows: Tensor  # int64 [1 or B, h]
    columns: Tensor  # int64 [1 or B, w]
    holes: tuple[tuple[Tensor, tuple[int, ...]], ...]  # bool [B, h, w], channels' values; first painted first


class _Crop:
    """A window of the image, anywhere that it fits in whole."""

    draws = 2

    def __init__(self, declared: A.RandomCrop, shape: Shape) -> None:
        height, width, channels = shape
        _refuse_other_options(declared, "height", "width")
        for option, room in (("height", height), ("width", width)):
            if getattr(declared, option) > room:
                raise _refusal(declared, option, getattr(declared, option), f"1 to {room}")
        self.shape = (declared.height, declared.width, channels)
        self.places = (height - declared.height + 1, width - declared.width + 1)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.integers(0, self.places, (count, 2))

    def before(self, origin: _Origin, draws: Tensor) -> _Origin:
        top, left = draws.split(1, dim=1)
        return origin._replace(rows=origin.rows + top, columns=origin.columns + left)


class _Flip:
    """Left and right exchanged."""

    draws = 1

    def __init__(self, declared: A.HorizontalFlip, shape: Shape) -> None:
        _refuse_other_options(declared, "p")
        self.shape, self.p = shape, declared.p

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return (rng.random((count, 1)) < self.p).astype(np.int64)

    def before(self, origin: _Origin, draws: Tensor) -> _Origin:
        mirrored = self.shape[1] - 1 - origin.columns
        return origin._replace(columns=torch.where(draws == 1, mirrored, origin.columns))


class _Hole:
    """One rectangle painted over, anywhere that it fits in whole."""

    draws = 2

    def __init__(self, declared: A.CoarseDropout, shape: Shape) -> None:
        height, width, channels = shape
        _refuse_other_options(declared, "num_holes_range", "hole_height_range", "hole_width_range", "fill", "p")
        if declared.num_holes_range != (1, 1):
            raise _refusal(declared, "num_holes_range", declared.num_holes_range, "(1, 1)")
        for option, room in (("hole_height_range", height), ("hole_width_range", width)):
            low, high = getattr(declared, option)
            if not (isinstance(low, int) and low == high and 1 <= low <= room):
                raise _refusal(declared, option, (low, high), f"one whole number from 1 to {room}, twice")
        fill = declared.fill if isinstance(declared.fill, tuple) else (declared.fill,) * channels
        if len(fill) != channels or not all(isinstance(value, (int, float)) and 0 <= value <= 255 for value in fill):
            raise _refusal(declared, "fill", declared.fill, f"a number from 0 to 255, or {channels} of them")
        self.shape, self.p = shape, declared.p
        self.fill = tuple(int(value) for value in fill)  # Albumentations cuts fractions off
        self.size = (declared.hole_height_range[0], declared.hole_width_range[0])
        self.places = (height - self.size[0] + 1, width - self.size[1] + 1)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        hit = rng.random((count, 1)) < self.p
        return np.where(hit, rng.integers(0, self.places, (count, 2)), np.negative(self.size))

    def before(self, origin: _Origin, draws: Tensor) -> _Origin:
        (height, width), (top, left) = self.size, draws.split(1, dim=1)
        rows = (origin.rows >= top) & (origin.rows < top + height)  # [B, h]
        columns = (origin.columns >= left) & (origin.columns < left + width)  # [B, w]
        inside = rows[:, :, None] & columns[:, None]  # [B, h, w]
        return origin._replace(holes=((inside, self.fill), *origin.holes))


_STEPS = {A.RandomCrop: _Crop, A.HorizontalFlip: _Flip, A.CoarseDropout: _Hole}


def _refuse_other_options(declared: A.BasicTransform, *read: str) -> None:
    """Refuses a transform some option of which is neither read here nor left as Albumentations has it."""
    for name, option in inspect.signature(type(declared)).parameters.items():
        if name not in read and getattr(declared, name) != option.default:
            raise _refusal(declared, name, getattr(declared, name), repr(option.default))


def _refusal(declared: A.BasicTransform | A.Compose, option: str, value: Any, known: str) -> ValueError:
    return ValueError(f"{type(declared).__name__}({option}={value!r}) is not done here, only {known}")
