"""From arrays of images to augmented batches on their way to the device.

A batch is planned before it is made: a plan says which images it takes and what seeds its augmentation. The shuffle
depends on (seed, epoch), the draws on (seed, epoch, batch index, rank), so the same bits come out of 0, 2 or 16
workers, and a run can go on from any step.
"""

from __future__ import annotations

import math
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from s10_resnet.data.dataset import Split
from s10_resnet.data.device_transforms import BatchedTransform
from s10_resnet.data.mixing import unmixed
from s10_resnet.data.transforms import mirror, pad, seed_transform, train_transform, use_one_thread
from s10_resnet.errors import InputError
from s10_resnet.utils import signals

Mixing = Callable[[tuple[int, int, int, int], Tensor, Tensor], tuple[Tensor, Tensor]]

_ALTERNATING = 1  # sets the draws of the first orientations apart from all others of the seed


class Plan(NamedTuple):
    """Which images make a batch, and the key its augmentation is seeded with."""

    key: tuple[int, int, int, int]  # seed, epoch, batch index, rank
    samples: np.ndarray  # int64 [B]


class Plans(Sampler[Plan]):
    """The plans of a whole run, epoch after epoch, so that workers prefetch across the end of an epoch.

    Every image comes once an epoch; where the batch size does not divide the number of images, the last batch is
    smaller. Where several processes train together, each takes every so-manyth image of every batch.

    Args:
        images: Training images.
        batch_size: Images in a step of all processes together.
        epochs: Passes over the images.
        seed: Of order and augmentation.
        first_step: Where to begin: the plans of so many steps are left out.
        rank: Which of the processes this is.
        world_size: How many there are.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        epochs: int,
        seed: int,
        *,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images, self.batch_size, self.epochs, self.seed = images, batch_size, epochs, seed
        self.first_step, self.rank, self.world_size = first_step, rank, world_size

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the ragged one counted."""
        return math.ceil(self.images / self.batch_size)

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch - self.first_step

    def __iter__(self) -> Iterator[Plan]:
        begun, done = divmod(self.first_step, self.steps_per_epoch)
        for epoch in range(begun, self.epochs):
            order = np.random.default_rng((self.seed, epoch)).permutation(self.images)
            for index in range(done if epoch == begun else 0, self.steps_per_epoch):
                batch = order[index * self.batch_size : (index + 1) * self.batch_size]
                yield Plan((self.seed, epoch, index, self.rank), batch[self.rank :: self.world_size])


class AugmentedBatches(Dataset[tuple[Tensor, Tensor]]):
    """Turns a plan into a batch: uint8 images ``[B, 32, 32, 3]`` and targets, int64 ``[B]`` unless they are mixed.

    The images are padded once and held as a tensor, which worker processes share instead of copying, whichever way
    they are started.

    Args:
        split: Images and labels.
        crop_padding: Pixels of reflection around an image before the random crop; 0 for no crop.
        flip: ``random`` mirrors half of the images; ``alternating`` mirrors every image in every second epoch, half of
            them in the first (Keller Jordan 2024, https://arxiv.org/abs/2404.00498); ``none`` mirrors none.
        mix: From a plan's key, images and labels to images and targets; see `s10_resnet.data.mixing`.
        **steps: What else `train_transform` takes.
    """

    def __init__(self, split: Split, *, crop_padding: int, flip: str, mix: Mixing = unmixed, **steps: float) -> None:
        self.size = split.images.shape[1]
        self.alternating, self.mix = flip == "alternating", mix
        self.images = torch.from_numpy(pad(split.images, crop_padding))  # [N, 32 + 2 * padding, ..., 3]
        self.labels = torch.from_numpy(split.labels)
        self.transform = train_transform(crop=crop_padding > 0, flip=flip == "random", size=self.size, **steps)

    def __getitem__(self, plan: Plan) -> tuple[Tensor, Tensor]:
        seed_transform(self.transform, *plan.key)
        padded = self.images.numpy()
        batch = np.empty((len(plan.samples), self.size, self.size, 3), np.uint8)
        for row, sample in enumerate(plan.samples):
            batch[row] = self.transform(image=padded[sample])["image"]
        if self.alternating:
            mirrored = _mirrored(plan, len(padded))
            batch[mirrored] = mirror(batch[mirrored])
        images, targets = self.mix(plan.key, torch.from_numpy(batch), self.labels[torch.from_numpy(plan.samples)])
        if get_worker_info() is not None:
            images.share_memory_()  # on its way it would be anyway, but by a thread whose failure nobody hears of
        return images, targets


class DeviceBatches(Dataset[tuple[Tensor, Tensor]]):
    """The same as `AugmentedBatches`, made on a device that holds all the images; other draws of the same odds.

    Raises:
        ValueError: For a transform that `s10_resnet.data.device_transforms` does not do.
    """

    def __init__(
        self,
        split: Split,
        device: torch.device,
        *,
        crop_padding: int,
        flip: str,
        mix: Mixing = unmixed,
        **steps: float,
    ) -> None:
        transform = train_transform(crop=crop_padding > 0, flip=flip == "random", size=split.images.shape[1], **steps)
        self.alternating, self.mix = flip == "alternating", mix
        self.images = torch.from_numpy(pad(split.images, crop_padding)).to(device)
        self.labels = torch.from_numpy(split.labels).to(device)
        self.transform = BatchedTransform(transform, self.images.shape[1:])

    def __getitem__(self, plan: Plan) -> tuple[Tensor, Tensor]:
        draws = self.transform.draw(np.random.default_rng(plan.key), len(plan.samples))
        samples, draws = (
            part.to(self.images.device, non_blocking=True) for part in (torch.from_numpy(plan.samples), draws)
        )
        images = self.transform.apply(self.images, draws, samples)
        if self.alternating:
            mirrored = torch.from_numpy(_mirrored(plan, len(self.images))).to(images.device, non_blocking=True)
            images = torch.where(mirrored[:, None, None, None], images.flip(2), images)
        return self.mix(plan.key, images, self.labels[samples])


def _mirrored(plan: Plan, images: int) -> np.ndarray:
    """Which images of a batch an alternating flip mirrors, bool ``[B]``: a function of seed, image and epoch alone."""
    seed, epoch, _, _ = plan.key
    return _mirrored_at_first(seed, images)[plan.samples] ^ bool(epoch % 2)


@lru_cache(maxsize=1)
def _mirrored_at_first(seed: int, images: int) -> np.ndarray:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_ALTERNATING,))).random(images) < 0.5


def train_loader(
    batches: AugmentedBatches | DeviceBatches, plans: Plans, *, workers: int, pin_memory: bool
) -> DataLoader:
    """The batches in the order of their plans; with workers, to be had through `running`, which ends them."""
    return DataLoader(
        batches,
        sampler=plans,
        batch_size=None,  # a plan is one item and its batch comes back whole: nothing to collate
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        prefetch_factor=4 if workers else None,
    )


def require_sockets(workers: int) -> None:
    """Makes sure that workers can send batches: through sockets in the system's folder for temporary files.

    In a worker, where the path is too long for a socket, that would be found out by a thread of whose failure nobody
    hears, and the first batch be waited for without end.

    Raises:
        InputError: If they cannot.
    """
    if not workers or not hasattr(socket, "AF_UNIX"):
        return
    try:
        with tempfile.TemporaryDirectory(prefix="pymp-") as folder, socket.socket(socket.AF_UNIX) as probe:
            path = Path(folder) / f"listener-{'x' * 8}"  # names as long as those of multiprocessing
            probe.bind(str(path))
            path.unlink()
    except OSError as error:
        raise InputError(
            f"--workers {workers}: must be 0, or TMPDIR another folder: workers send batches through sockets in "
            f"{tempfile.gettempdir()}, where none can be made ({error})"
        ) from None


@contextmanager
def running(loader: DataLoader) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """Starts a loader's workers and, however the block is left, ends them.

    A signal to the whole process group is for the main process alone: workers that died of it would take batches with
    them which the step in hand still needs.
    """
    with signals.withheld():
        batches = iter(loader)
    try:
        yield batches
    finally:
        if loader.num_workers:
            batches._shutdown_workers()  # private, but the public way is to leave it to the garbage collector
            for worker in batches._workers:
                worker.kill()


def _start_worker(worker: int) -> None:
    use_one_thread()
    signals.ignore()
