"""Data loading: a sampler that says which images make a batch, and data sets that turn its answer into a batch.

All randomness is stateless. It follows from seeds alone, so the batches are bit-identical with any number of workers,
and a run can be resumed at any step:

- The order of the images in an epoch is seeded with (seed, epoch).
- The augmentation of a batch is seeded with (seed, epoch, batch index, rank).
- The images that an alternating flip flips in the first epoch are seeded with the seed and spawn key 1.

NumPy pads seeds with zeros, so ``default_rng((seed, epoch))`` and ``default_rng((seed, epoch, 0, 0))`` are the same
stream: the order of an epoch and the device augmentation of its first batch use the same random bits. Both remain
uniformly distributed.
"""

from __future__ import annotations

import math
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from s10_resnet.data.dataset import Split
from s10_resnet.data.device_transforms import DeviceTransform
from s10_resnet.data.transforms import reflect_pad, seed_transform, train_transform
from s10_resnet.errors import InputError
from s10_resnet.utils import signals
from s10_resnet.utils.console import logger
from s10_resnet.utils.launch import launch_env

SHARED_MEMORY = Path("/dev/shm")  # through which workers pass their batches on Linux; 64 MB in a container by default
MAX_PREFETCH = 4  # batches that a worker prepares in advance


class BatchSpec(NamedTuple):
    """What makes a batch."""

    key: tuple[int, int, int, int]  # seed of the augmentation: seed, epoch, batch index, rank
    indices: np.ndarray  # of the images, int64 [B]


@dataclass(eq=False)
class StatelessBatchSampler(Sampler[BatchSpec]):
    """Yields the batches of all epochs in a row, so that workers prefetch across the end of an epoch.

    Every image comes once an epoch. The last batch of an epoch is smaller if the batch size does not divide the number
    of images. With several processes, each takes every ``world_size``-th image of every batch.
    """

    num_images: int
    batch_size: int  # images per step, over all processes
    epochs: int
    seed: int  # of order and augmentation, in 0..2**32 - 1
    first_step: int = 0  # number of steps to skip, counted from the first epoch
    rank: int = 0  # of this process
    world_size: int = 1  # number of processes

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch, including a smaller last one."""
        return math.ceil(self.num_images / self.batch_size)

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch - self.first_step

    def __iter__(self) -> Iterator[BatchSpec]:
        first_epoch, first_batch = divmod(self.first_step, self.steps_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            order = np.random.default_rng((self.seed, epoch)).permutation(self.num_images)
            for batch in range(first_batch if epoch == first_epoch else 0, self.steps_per_epoch):
                indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
                yield BatchSpec((self.seed, epoch, batch, self.rank), indices[self.rank :: self.world_size])


class AugmentedBatches(Dataset[tuple[Tensor, Tensor]]):
    """Map-style data set from a `BatchSpec` to a batch augmented by Albumentations on the CPU.

    An item is a pair of images, uint8 ``[B, 32, 32, 3]``, and labels, int64 ``[B]``. The images are padded once and
    held as a tensor, which worker processes share whatever their start method is.

    Args:
        split: Training images and labels.
        crop_padding: Pixels of reflection padding before the random crop; 0 disables the crop.
        flip: ``random`` flips each image with a probability of 0.5; ``alternating`` flips a random half of the images
            in the first epoch, the other half in the second, and so on
            (Jordan 2024, https://arxiv.org/abs/2404.00498); ``none`` flips none.
        cutout_size: See `train_transform`.
    """

    def __init__(self, split: Split, *, crop_padding: int, flip: str, cutout_size: int) -> None:
        self.alternating_flip = flip == "alternating"
        self.images = torch.from_numpy(reflect_pad(split.images, crop_padding))  # [N, 32 + 2 * padding, ..., 3]
        self.labels = torch.from_numpy(split.labels)
        self.transform = train_transform(crop=crop_padding > 0, flip=flip == "random", cutout_size=cutout_size)

    def __getitem__(self, spec: BatchSpec) -> tuple[Tensor, Tensor]:
        seed_transform(self.transform, *spec.key)
        padded = self.images.numpy()
        batch = np.stack([self.transform(image=padded[index])["image"] for index in spec.indices])
        if self.alternating_flip:
            flipped = _is_flipped(spec, len(padded))
            batch[flipped] = batch[flipped, :, ::-1]
        images = torch.from_numpy(batch)
        if get_worker_info() is not None:
            # Would happen later anyway, but in a thread of the worker, where an error (a full /dev/shm) is lost and
            # the main process waits forever.
            images.share_memory_()
        return images, self.labels[torch.from_numpy(spec.indices)]


class DeviceAugmentedBatches(AugmentedBatches):
    """`AugmentedBatches` on a device that holds all images.

    The random parameters have the same distributions, but other values.
    """

    def __init__(self, split: Split, device: torch.device, *, crop_padding: int, flip: str, cutout_size: int) -> None:
        super().__init__(split, crop_padding=crop_padding, flip=flip, cutout_size=cutout_size)
        self.images, self.labels = self.images.to(device), self.labels.to(device)
        self.device_transform = DeviceTransform(crop_padding, flip == "random", cutout_size)

    def __getitem__(self, spec: BatchSpec) -> tuple[Tensor, Tensor]:
        device = self.images.device
        params = self.device_transform.sample_params(np.random.default_rng(spec.key), len(spec.indices))
        params = params.to(device, non_blocking=True)
        indices = torch.from_numpy(spec.indices).to(device, non_blocking=True)
        images = self.device_transform.apply(self.images, indices, params)
        if self.alternating_flip:
            flipped = torch.from_numpy(_is_flipped(spec, len(self.images))).to(device, non_blocking=True)
            images = torch.where(flipped[:, None, None, None], images.flip(2), images)
        return images, self.labels[indices]


def _is_flipped(spec: BatchSpec, num_images: int) -> np.ndarray:
    """Which images of a batch the alternating flip flips, bool ``[B]``; depends on seed, epoch and image only."""
    seed, epoch, _, _ = spec.key
    return _is_flipped_first(seed, num_images)[spec.indices] ^ bool(epoch % 2)


@lru_cache(maxsize=1)
def _is_flipped_first(seed: int, num_images: int) -> np.ndarray:
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    return rng.random(num_images) < 0.5


def create_loader(
    dataset: Dataset[Any], sampler: Sampler[Any] | Sequence[Any], *, workers: int, pin_memory: bool, batch_size: int = 1
) -> DataLoader:
    """Creates a loader that yields the batches of ``sampler``; iterate over it with `iterate_batches`.

    There are fewer workers, with a warning, if batches of ``batch_size`` images would not fit into shared memory.
    """
    fitting, prefetch = fit_shared_memory(workers, batch_size * (32 * 32 * 3 + 8))  # pixels and an int64 label
    if fitting < workers:
        logger.warning(
            f"{SHARED_MEMORY} has no room for the batches of {workers} workers: {fitting} are used. Enlarge it, for "
            "example with docker run --shm-size"
        )
    return DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,  # an item is a whole batch
        num_workers=fitting,
        pin_memory=pin_memory,
        worker_init_fn=_init_worker,
        prefetch_factor=prefetch if fitting else None,
    )


def fit_shared_memory(workers: int, batch_bytes: int) -> tuple[int, int]:
    """Returns how many workers, and batches prepared by each, fit into what is free of the shared memory.

    Two more batches are in use, and the training processes of a machine share the memory. The batches are the same with
    any number of workers.
    """
    if not workers or not SHARED_MEMORY.is_dir():
        return workers, MAX_PREFETCH
    free = shutil.disk_usage(SHARED_MEMORY).free // launch_env().local_world_size
    batches = max(0, free // batch_bytes - 2)
    workers = min(workers, batches)
    return workers, min(MAX_PREFETCH, batches // max(1, workers))


def check_worker_sockets(workers: int) -> None:
    """Checks that DataLoader workers can send batches, which takes Unix sockets in the folder of temporary files.

    If the path of that folder is too long for a socket, the error is lost in a thread of the worker, and the main
    process waits forever for its first batch.

    Raises:
        InputError: If no socket can be created there.
    """
    if not workers or not hasattr(socket, "AF_UNIX"):
        return
    try:
        with tempfile.TemporaryDirectory(prefix="pymp-") as folder, socket.socket(socket.AF_UNIX) as probe:
            path = Path(folder) / "listener-xxxxxxxx"  # as long as the names of multiprocessing
            probe.bind(str(path))
            path.unlink()
    except OSError as error:
        raise InputError(
            f"--workers {workers}: must be 0, or TMPDIR another folder: workers send batches through sockets in "
            f"{tempfile.gettempdir()}, where none can be created ({error})"
        ) from None


@contextmanager
def iterate_batches(loader: DataLoader) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """Starts the workers of a loader, and ends them when the block is left in any way.

    Workers ignore SIGINT and SIGTERM, which a terminal and supervisors send to the whole process group: a worker that
    died would lose batches that the main process still needs to finish its step.
    """
    with signals.block_signals():
        batches: Any = iter(loader)
    try:
        yield batches
    finally:
        if loader.num_workers:
            batches._shutdown_workers()  # private; the public way is garbage collection, at an unknown time
            for worker in batches._workers:
                worker.kill()


def _init_worker(worker_id: int) -> None:
    cv2.setNumThreads(0)  # OpenCV would start a thread pool of its own
    signals.ignore_signals()
