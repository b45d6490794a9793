"""The augmentation, declared with Albumentations; the package's only importer of it."""

from __future__ import annotations

import os
import random

import numpy as np

# Albumentations asks the network for a newer release when it is imported, unless told not to before.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A  # noqa: N812
import cv2

# Mean and standard deviation of the 50,000 x 32 x 32 training pixels of each channel, as fractions of 1;
# tests/unit/data/test_transforms.py recomputes them. (The 0.2023-style std of many scripts is the mean of per-image
# stds.)
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)

_MIRROR = A.HorizontalFlip(p=1.0)


def train_transform(
    *,
    crop: bool,
    flip: bool,
    cutout: int,
    cutout_probability: float = 1.0,
    rotation: float = 0.0,
    color_jitter: float = 0.0,
    size: int = 32,
) -> A.Compose:
    """What a training image goes through, uint8 to uint8; normalising is the network's first layer.

    Args:
        crop: Cut a window of ``size`` x ``size`` at random; the images come padded (`pad`).
        flip: Mirror half of the images.
        cutout: Side in pixels of one square filled with the mean pixel; 0 for none
            (DeVries and Taylor 2017, https://arxiv.org/abs/1708.04552).
        cutout_probability: Share of the images that get it.
        rotation: Largest angle in degrees, either way, with mirrored borders; 0 for none.
        color_jitter: Largest change of brightness, contrast and saturation, as a fraction of 1; 0 for none.
        size: Side of an image in pixels.

    Returns:
        A transform of single uint8 images ``[H, W, 3]``. Its draws follow `seed_transform`.
    """
    steps: list[A.BasicTransform] = []
    if rotation:  # while there is a border to turn in
        steps.append(A.Rotate(limit=(-rotation, rotation), border_mode=cv2.BORDER_REFLECT_101, p=1.0))
    if crop:
        steps.append(A.RandomCrop(size, size))
    if color_jitter:
        factors = (1 - color_jitter, 1 + color_jitter)
        steps.append(A.ColorJitter(brightness=factors, contrast=factors, saturation=factors, hue=(0, 0), p=1.0))
    if flip:
        steps.append(A.HorizontalFlip(p=0.5))
    if cutout:
        side = (cutout, cutout)
        fill = tuple(round(255 * mean) for mean in MEAN)
        steps.append(
            A.CoarseDropout(
                num_holes_range=(1, 1),
                hole_height_range=side,
                hole_width_range=side,
                fill=fill,
                p=cutout_probability,
            )
        )
    return A.Compose(steps, seed=None)


def seed_transform(transform: A.Compose, *key: int) -> None:
    """Makes the transform's next draws a function of ``key`` alone.

    Albumentations 2.0.8 gives every DataLoader worker the same sequence of draws; a key for each batch rules that out.
    """
    numpy_key, python_key = np.random.SeedSequence(key).spawn(2)
    transform.set_random_state(
        np.random.default_rng(numpy_key), random.Random(int(python_key.generate_state(1, np.uint64)[0]))
    )


def mirror(images: np.ndarray) -> np.ndarray:
    """Left and right exchanged, uint8 ``[N, H, W, 3]``."""
    return _MIRROR(images=images)["images"] if len(images) else images


def pad(images: np.ndarray, pixels: int) -> np.ndarray:
    """Mirrors the borders outwards, edge pixels not repeated, once for a whole array instead of once an image.

    Args:
        images: uint8 ``[N, H, W, 3]``.
        pixels: Width of the border on each side.

    Returns:
        uint8 ``[N, H + 2 * pixels, W + 2 * pixels, 3]``, equal to ``A.Pad`` with ``cv2.BORDER_REFLECT_101``.
    """
    return np.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode="reflect")


def use_one_thread() -> None:
    """Keeps OpenCV from starting a thread pool in every worker process."""
    cv2.setNumThreads(0)
