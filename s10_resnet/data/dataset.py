"""Data sets held in memory: CIFAR-10 or the synthetic data set, and their splits."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from s10_resnet.data import synthetic
from s10_resnet.errors import DownloadError, InputError

VAL_SPLIT_SEED = 0  # fixed, so that the validation accuracies of any two runs are of the same images


class Split(NamedTuple):
    """Labeled images."""

    images: np.ndarray  # uint8 [N, 32, 32, 3]
    labels: np.ndarray  # int64 [N], indices of classes
    classes: tuple[str, ...]

    def subset(self, indices: np.ndarray | slice) -> Split:
        """The images and labels at ``indices``, in that order."""
        return Split(self.images[indices], self.labels[indices], self.classes)


def load_dataset(name: str, data_dir: Path) -> tuple[Split, Split, str]:
    """Loads a data set by name.

    Args:
        name: ``cifar10``, ``synthetic``, or ``auto``: CIFAR-10 if it is there or can be downloaded, else the synthetic
            data set.
        data_dir: Folder of CIFAR-10.

    Returns:
        Training split, test split, and the name of the data set that was loaded: ``cifar10`` or ``synthetic``.

    Raises:
        InputError: See `s10_resnet.data.cifar10.read_cifar10`; with ``auto``, too, for a damaged or unwritable folder.
    """
    if name != "synthetic":
        try:
            return *load_cifar10(data_dir), "cifar10"
        except DownloadError:
            if name != "auto":
                raise
    return *load_synthetic(), "synthetic"


def load_cifar10(root: Path) -> tuple[Split, Split]:
    """Loads the training and the test split of CIFAR-10; see `s10_resnet.data.cifar10.read_cifar10`."""
    from s10_resnet.data import cifar10  # imports torchvision, which takes seconds

    train, test = cifar10.read_cifar10(root)
    return Split(*train), Split(*test)


def load_synthetic(train_size: int = 10_000, test_size: int = 2_000) -> tuple[Split, Split]:
    """Generates the training and the test split of the synthetic data set; see `s10_resnet.data.synthetic`."""
    train, test = synthetic.generate(train_size, seed=1), synthetic.generate(test_size, seed=2)
    return Split(*train, synthetic.CLASSES), Split(*test, synthetic.CLASSES)


def train_val_split(split: Split, val_size: int) -> tuple[Split, Split]:
    """Splits off ``val_size`` images for validation, stratified by class.

    Returns:
        Training and validation split, both in the original order.

    Raises:
        InputError: If no image would be left for training.
    """
    num_images = len(split.labels)
    if val_size >= num_images:
        raise InputError(f"--val-size {val_size}: must be below the number of training images, {num_images}")
    order = np.random.default_rng(VAL_SPLIT_SEED).permutation(num_images)
    rank = np.empty(num_images)  # of each image among the shuffled images of its class, as a fraction of their number
    for label in np.unique(split.labels):
        of_class = order[split.labels[order] == label]
        rank[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
    in_val = np.zeros(num_images, bool)
    in_val[np.argsort(rank, kind="stable")[:val_size]] = True
    return split.subset(~in_val), split.subset(in_val)
