"""The images: CIFAR-10 from its official files, or the built-in stand-in."""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from s10_resnet import synthetic
from s10_resnet.errors import InputError

HOLD_OUT_SEED = 0  # fixed, so that held-out figures of any two runs speak of the same images


class Split(NamedTuple):
    """Images with their labels: uint8 ``[N, 32, 32, 3]``, int64 ``[N]``, and the names of the classes."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def take(self, samples: np.ndarray | slice) -> Split:
        """The images at these places, in this order."""
        return Split(self.images[samples], self.labels[samples], self.classes)


class DownloadError(InputError):
    """CIFAR-10 is not there and could not be fetched."""


def load(dataset: str, data_dir: Path) -> tuple[Split, Split, str]:
    """Training split, test split, and the name of what was loaded: ``cifar10`` or ``synthetic``.

    Args:
        dataset: ``cifar10``, ``synthetic``, or ``auto`` for the first where it can be had and else the second.
        data_dir: See `load_cifar10`.

    Raises:
        InputError: See `load_cifar10`; a damaged folder is refused with ``auto``, too.
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
    """The 50,000 training and 10,000 test images of CIFAR-10, which is downloaded once if ``root`` does not hold it.

    Args:
        root: Folder that holds ``cifar-10-batches-py/`` or its archive, or gets them.

    Raises:
        DownloadError: If the images are not there and cannot be fetched.
        InputError: If a file is missing, cut short or altered; nothing is unpickled then.
    """
    folder = root / CIFAR10.base_folder
    if not folder.is_dir():
        _download(root)
    _verify(folder)
    return tuple(
        Split(part.data, np.array(part.targets, np.int64), tuple(part.classes))
        for part in (CIFAR10(root, train=True), CIFAR10(root, train=False))
    )


def load_synthetic(train_size: int = 10_000, test_size: int = 2_000) -> tuple[Split, Split]:
    """The built-in stand-in: see `s10_resnet.synthetic`."""
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


def _download(root: Path) -> None:
    was_there = root.exists()
    try:
        CIFAR10(root, download=True)  # checks the archive's MD5 before it unpacks it
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        if not was_there and root.is_dir() and not any(root.iterdir()):
            root.rmdir()
        raise DownloadError(
            f"--data-dir {root}: CIFAR-10 is not there ({CIFAR10.base_folder}/ is missing) and the download failed "
            f"({error}). Put {CIFAR10.filename} (MD5 {CIFAR10.tgz_md5}) into that folder, name a folder that holds "
            f"{CIFAR10.base_folder}/ with --data-dir, or train on the built-in stand-in with --dataset synthetic."
        ) from error


def _verify(folder: Path) -> None:
    meta = [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]
    for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, meta]:
        if not check_integrity(folder / name, md5):
            state = "is not the official file" if (folder / name).is_file() else "is missing"
            raise InputError(
                f"--data-dir {folder.parent}: {folder.name}/{name} {state} (MD5 must be {md5}). "
                f"Remove {folder} to have CIFAR-10 downloaded again."
            )
