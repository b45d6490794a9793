"""With any number of workers, augmentation and weights are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from s10_resnet.data import synthetic
from s10_resnet.data.dataset import Split
from s10_resnet.data.loader import AugmentedBatches, StatelessBatchSampler, create_loader, iterate_batches
from s10_resnet.utils import serialization
from tests.stress.lab import SMALL, Lab, Row


def worker_counts(lab: Lab, counts: tuple[int, ...]) -> Iterator[Row]:
    """The same weights with any number of workers."""

    def digest(workers: int) -> str:
        end = lab.train(f"workers-{workers}", SMALL, "--workers", workers).ended()
        if end.code:
            return end.err
        model = serialization.load(lab.folder / f"workers-{workers}" / "last.pt")["model"]
        return hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.values())).hexdigest()

    digests = lab.each(digest, counts)
    held = sum(value == digests[0] for value in digests)
    yield Row(
        "9",
        f"numbers of workers ({', '.join(map(str, counts))}): one hash of the weights",
        len(counts),
        held,
        digests[0][:12],
    )


def draws(lab: Lab, workers: tuple[int, ...], epochs: int) -> Iterator[Row]:
    """No two batches are augmented alike, and the augmentation is the same with any number of workers.

    All images are the same one, in which every pixel has its own colour: equal batches mean equal random numbers.
    """
    y, x = np.mgrid[:32, :32].astype(np.uint8)
    image = np.stack([y, x, y + x], axis=-1)
    split = Split(np.repeat(image[None], 320, axis=0), np.zeros(320, np.int64), synthetic.CLASSES)
    augmented = AugmentedBatches(split, crop_padding=4, flip="random", cutout_size=8)
    sequences = []
    for count in workers:
        loader = create_loader(
            augmented, StatelessBatchSampler(320, 16, epochs, seed=lab.seed % 2**32), workers=count, pin_memory=False
        )
        with iterate_batches(loader) as batches:
            sequences.append([images.numpy().tobytes() for images, _ in batches])
    duplicates = sum(len(sequence) - len(set(sequence)) for sequence in sequences)
    alike = sum(sequence == sequences[0] for sequence in sequences)
    drawn = sum(map(len, sequences))
    problems = () if alike == len(workers) else (f"{len(workers) - alike} numbers of workers augmented differently",)
    yield Row(
        "10",
        f"augmented batches over {len(workers)} numbers of workers and {epochs} epochs: no two equal",
        drawn,
        drawn - duplicates,
        f"duplicates: {duplicates}",
        problems,
    )
