"""Data augmentation with Albumentations. This is the only module that imports it."""

from __future__ import annotations

import os
import random

import numpy as np

# Otherwise Albumentations looks for a newer release on the network when it is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A  # noqa: N812

# Per-channel mean and standard deviation over all pixels of the 50,000 training images, as fractions of 1;
# tests/unit/data/test_transforms.py recomputes them. (The 0.2023-style std of many scripts is the mean of per-image
# stds.)
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
MEAN_PIXEL = tuple(round(255 * mean) for mean in MEAN)


def train_transform(*, crop: bool, flip: bool, cutout_size: int) -> A.Compose:
    """Builds the augmentation of training images. Normalization is not part of it: it is the model's first layer.

    Args:
        crop: Randomly crop to 32 x 32 pixels; the input has to be padded before, see `reflect_pad`.
        flip: Flip horizontally with a probability of 0.5.
        cutout_size: Side in pixels of a square filled with the mean pixel; 0 disables it
            (DeVries and Taylor 2017, https://arxiv.org/abs/1708.04552).

    Returns:
        A transform from uint8 ``[H, W, 3]`` to uint8 ``[32, 32, 3]``; seed it with `seed_transform`.
    """
    steps: list[A.BasicTransform] = []
    if crop:
        steps.append(A.RandomCrop(32, 32))
    if flip:
        steps.append(A.HorizontalFlip(p=0.5))
    if cutout_size:
        steps.append(
            A.CoarseDropout(
                num_holes_range=(1, 1),
                hole_height_range=(cutout_size, cutout_size),
                hole_width_range=(cutout_size, cutout_size),
                fill=MEAN_PIXEL,
                p=1.0,
            )
        )
    return A.Compose(steps, seed=None)


def seed_transform(transform: A.Compose, *key: int) -> None:
    """Seeds a transform, so that its next random parameters are a function of ``key`` alone.

    By itself, Albumentations 2.0.8 draws the same sequence in every DataLoader worker.
    """
    numpy_seed, python_seed = np.random.SeedSequence(key).spawn(2)
    transform.set_random_state(
        np.random.default_rng(numpy_seed), random.Random(int(python_seed.generate_state(1, np.uint64)[0]))
    )


def reflect_pad(images: np.ndarray, pixels: int) -> np.ndarray:
    """Pads images ``[N, H, W, C]`` on each side by reflection, as ``A.Pad`` does with ``BORDER_REFLECT_101``."""
    return np.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode="reflect")
