"""The images: CIFAR-10 from its official files, or the built-in stand-in."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from s10_resnet.data import synthetic
from s10_resnet.errors import DownloadError, InputError

HOLD_OUT_SEED = 0  # fixed, so that held-out figures of any two runs speak of the same images


class Split(NamedTuple):
    """Images with their labels: uint8 ``[N, 32, 32, 3]``, int64 ``[N]``, and the names of the classes."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def take(self, samples: np.ndarray | slice) -> Split:
        """The images at these places, in this order."""
        return Split(self.images[samples], self.labels[samples], self.classes)


def load(dataset: str, data_dir: Path) -> tuple[Split, Split, str]:
    """Training split, test split, and the name of what was loaded: ``cifar10`` or ``synthetic``.

    Args:
        dataset: ``cifar10``, ``synthetic``, or ``auto`` for the first where it can be had and else the second.
        data_dir: See `s10_resnet.data.cifar10.read`.

    Raises:
        InputError: See `s10_resnet.data.cifar10.read`; a damaged or unwritable folder is refused with ``auto``, too.
    """
    if dataset == "synthetic":
        return *load_synthetic(), "synthetic"
    try:
        return *load_cifar10(data_dir), "cifar10"
    except DownloadError:
        if dataset == "auto":
            return *load_synthetic(), "synthetic"
        raise


def load_cifar10(root: Path) -> tuple[Split, Split]:
    """CIFAR-10's training and test images: see `s10_resnet.data.cifar10`."""
    from s10_resnet.data import cifar10  # torchvision takes seconds to import, and the stand-in does without

    return tuple(Split(*part) for part in cifar10.read(root))


def load_synthetic(train_size: int = 10_000, test_size: int = 2_000) -> tuple[Split, Split]:
    """The built-in stand-in: see `s10_resnet.data.synthetic`."""
    return tuple(
        Split(*synthetic.draw(size, seed), synthetic.CLASSES) for size, seed in ((train_size, 1), (test_size, 2))
    )


def hold_out(split: Split, size: int, seed: int = HOLD_OUT_SEED) -> tuple[Split, Split]:
    """Takes ``size`` images out, of every class its share.

    Returns:
        The rest and the images held out, both in their old order.

    Raises:
        InputError: If nothing would be left to train on.
    """
    if size >= len(split.labels):
        raise InputError(f"--val-size {size}: must be below the number of training images, {len(split.labels)}")
    order = np.random.default_rng(seed).permutation(len(split.labels))
    place = np.empty(len(order))  # of an image in the line of its class, as a fraction of the line's length
    for label in np.unique(split.labels):
        line = order[split.labels[order] == label]
        place[line] = (np.arange(len(line)) + 0.5) / len(line)
    held = np.zeros(len(order), bool)
    held[np.argsort(place, kind="stable")[:size]] = True
    return split.take(~held), split.take(held)
