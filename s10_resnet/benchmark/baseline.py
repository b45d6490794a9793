"""The script of this assignment as it is usually written, for the benchmark to measure the package against.

A picture at a time through PIL and Albumentations, Normalize and ToTensorV2 last; the default collate function; fp32 in
contiguous memory; the loss read after every step; plain Adam. Nothing in it is slowed down, and nothing is tuned. The
network, the augmentation, the schedule and the reading of the files are the package's, so that the two do the same
work. ``python -m s10_resnet.benchmark.baseline --help``
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from s10_resnet.data import dataset as data
from s10_resnet.data.dataset import Split
from s10_resnet.data.transforms import MEAN, STD, A
from s10_resnet.models.resnet import ResNet9
from s10_resnet.training.optim import one_cycle

Parts = tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]


def transform(*, train: bool) -> A.Compose:
    """What a picture goes through, uint8 ``[32, 32, 3]`` to float32 ``[3, 32, 32]``."""
    augmentation = [
        A.Pad(4, border_mode=cv2.BORDER_REFLECT_101),
        A.RandomCrop(32, 32),
        A.HorizontalFlip(p=0.5),
        A.CoarseDropout(
            num_holes_range=(1, 1),
            hole_height_range=(8, 8),
            hole_width_range=(8, 8),
            fill=tuple(round(255 * mean) for mean in MEAN),
            p=1.0,
        ),
    ]
    return A.Compose([*(augmentation if train else []), A.Normalize(MEAN, STD), A.ToTensorV2()])


class Pictures(Dataset[tuple[Tensor, int]]):
    """Single images, float32 ``[3, 32, 32]``, and labels, by way of PIL, as in `torchvision.datasets.CIFAR10`."""

    def __init__(self, split: Split, *, train: bool) -> None:
        self.split = split
        self.transform = transform(train=train)

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self.split.images[index])
        return self.transform(image=np.array(picture))["image"], int(self.split.labels[index])


def loader(split: Split, batch_size: int, workers: int, *, train: bool, pin_memory: bool = False) -> DataLoader:
    """Batches of float32 images ``[B, 3, 32, 32]`` and labels ``[B]``; shuffled if they are to train on."""
    pictures = Pictures(split, train=train)
    return DataLoader(pictures, batch_size, shuffle=train, num_workers=workers, pin_memory=pin_memory)


def build(device: torch.device, *, max_lr: float, total_steps: int) -> Parts:
    """Network, optimizer and scheduler."""
    network = ResNet9().to(device)
    optimizer = torch.optim.Adam(network.parameters(), weight_decay=1e-4)
    factors = {"pct_start": 0.2, "anneal": "linear", "div_factor": 25.0, "final_div_factor": 1e4}
    return network, optimizer, one_cycle(optimizer, max_lr=max_lr, total_steps=total_steps, **factors)


def train_steps(parts: Parts, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Iterator[float]:
    """Takes one optimizer step a batch and gives the loss of each."""
    network, optimizer, scheduler = parts
    network.train()
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
        yield loss.item()


def evaluate(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> float:
    """Accuracy as a fraction of 1."""
    network.eval()
    right = images_seen = 0
    with torch.no_grad():
        for images, labels in batches:
            images, labels = images.to(device), labels.to(device)
            right += (network(images).argmax(1) == labels).sum().item()
            images_seen += len(labels)
    return right / images_seen


def main(argv: list[str] | None = None) -> None:
    """Trains and prints a line an epoch."""
    parser = argparse.ArgumentParser(prog="textbook", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dataset", choices=("cifar10", "synthetic"), default="cifar10")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--limit", type=int, default=50_000, help="training images; a fifth as many test images")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--max-lr", type=float, default=5e-3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    flags = parser.parse_args(argv)

    train, test, _ = data.load(flags.dataset, flags.data_dir)
    train, test = train.take(slice(flags.limit)), test.take(slice(flags.limit // 5))
    device = torch.device(flags.device)
    of_device = {"workers": flags.workers, "pin_memory": device.type == "cuda"}
    train_batches = loader(train, flags.batch_size, train=True, **of_device)
    test_batches = loader(test, flags.batch_size, train=False, **of_device)
    parts = build(device, max_lr=flags.max_lr, total_steps=flags.epochs * len(train_batches))
    for epoch in range(flags.epochs):
        start = time.perf_counter()
        losses = list(train_steps(parts, train_batches, device))
        speed = len(train.labels) / (time.perf_counter() - start)
        accuracy = evaluate(parts[0], test_batches, device)
        loss = sum(losses) / len(losses)
        print(f"epoch {epoch + 1}: loss {loss:.4f}, accuracy {accuracy:.2%}, {speed:,.0f} images/s")


if __name__ == "__main__":
    main()
