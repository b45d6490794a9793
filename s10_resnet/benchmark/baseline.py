"""A plain training script, as this assignment is usually solved: what the benchmark measures the package against.

Single images through PIL and Albumentations, Normalize and ToTensorV2 last; the default collate function; fp32 in
contiguous memory; the loss read after every step; Adam as it comes. Nothing is slowed down on purpose, and nothing is
tuned. Network, augmentation, schedule and data set are the package's, so that both do the same work.

``python -m s10_resnet.benchmark.baseline --help``
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from math import ceil
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from s10_resnet.data.dataset import Split, load_dataset
from s10_resnet.data.transforms import MEAN, STD, A, train_transform
from s10_resnet.models.resnet import ResNet9
from s10_resnet.training.optim import create_scheduler

PIPELINE_IMAGES = 2048  # that the input pipeline is timed with, at least: a tenth of a second and more
SCHEDULE: dict[str, Any] = {"pct_start": 0.2, "anneal_strategy": "linear", "div_factor": 25, "final_div_factor": 1e4}
UNLIMITED = 1_000_000  # steps: the schedule of a measurement never ends

Training = tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]


def create_transform(*, train: bool) -> A.Compose:
    """Returns a transform from a uint8 image ``[32, 32, 3]`` to float32 ``[3, 32, 32]``."""
    pad = A.Pad(4, border_mode=cv2.BORDER_REFLECT_101)
    augmentation = [pad, *train_transform(crop=True, flip=True, cutout_size=8).transforms] if train else []
    return A.Compose([*augmentation, A.Normalize(MEAN, STD), A.ToTensorV2()])


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Single images, float32 ``[3, 32, 32]``, and labels, through PIL as in `torchvision.datasets.CIFAR10`."""

    def __init__(self, split: Split, *, train: bool) -> None:
        self.split = split
        self.transform = create_transform(train=train)

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.split.images[index])
        return self.transform(image=np.array(image))["image"], int(self.split.labels[index])


def create_training(device: torch.device, *, max_lr: float, total_steps: int) -> Training:
    """Returns network, optimizer and scheduler."""
    model = ResNet9().to(device)
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=1e-4)
    return model, optimizer, create_scheduler(optimizer, max_lr=max_lr, total_steps=total_steps, **SCHEDULE)


def train_steps(training: Training, batches: Iterable[Sequence[Tensor]], device: torch.device) -> Iterator[float]:
    """Takes one optimizer step per batch, and yields its loss."""
    model, optimizer, scheduler = training
    model.train()
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
        yield loss.item()


def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> float:
    """Returns the accuracy as a fraction of 1."""
    model.eval()
    correct = total = 0
    with torch.no_grad():
        for images, labels in batches:
            images, labels = images.to(device), labels.to(device)
            correct += (model(images).argmax(1) == labels).sum().item()
            total += len(labels)
    return correct / total


@contextmanager
def single_thread() -> Iterator[None]:
    """Within this block, torch uses one CPU thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def time_stages(names: Iterable[str], loader: DataLoader, device: torch.device, max_lr: float) -> Iterator[float]:
    """Yields the seconds of each stage that is named: ``pipeline``, ``step`` or ``epoch``."""
    images, batch_size = cast(ImageDataset, loader.dataset), cast(int, loader.batch_size)
    training = create_training(device, max_lr=max_lr, total_steps=UNLIMITED)

    def create_batch() -> tuple[Tensor, Tensor]:
        return default_collate([images[index] for index in range(batch_size)])

    on_device = [tensor.to(device) for tensor in create_batch()]
    for name in names:
        start = time.perf_counter()
        if name == "pipeline":
            with single_thread():
                for _ in range(ceil(PIPELINE_IMAGES / batch_size)):
                    create_batch()
        else:
            batches = {"step": repeat(on_device, len(images) // batch_size), "epoch": loader}[name]
            deque(train_steps(training, batches, device), maxlen=0)
        yield time.perf_counter() - start


def main(argv: list[str] | None = None) -> None:
    """Trains, and prints a line per epoch."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog="baseline", description=__doc__.splitlines()[0], formatter_class=formatter)
    parser.add_argument("--dataset", choices=("cifar10", "synthetic"), default="cifar10", help="data set")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of cifar-10-batches-py")
    parser.add_argument("--max-train-samples", type=int, default=50_000, help="and a fifth as many test images")
    parser.add_argument("--epochs", type=int, default=24, help="number of epochs")
    parser.add_argument("--batch-size", type=int, default=512, help="images per training step")
    parser.add_argument("--max-lr", type=float, default=5e-3, help="peak learning rate")
    parser.add_argument("--workers", type=int, default=0, help="data loading processes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or mps")
    parser.add_argument(
        "--time-stages",
        action="store_true",
        help="instead of training, read names of stages (pipeline, step or epoch) from standard input, one a line, and "
        "print the seconds of each",
    )
    args = parser.parse_args(argv)

    train, test, _ = load_dataset(args.dataset, args.data_dir)
    train, test = train.subset(slice(args.max_train_samples)), test.subset(slice(args.max_train_samples // 5))
    device = torch.device(args.device)
    options = {"batch_size": args.batch_size, "num_workers": args.workers, "pin_memory": device.type == "cuda"}
    train_loader = DataLoader(ImageDataset(train, train=True), shuffle=True, **options)
    test_loader = DataLoader(ImageDataset(test, train=False), **options)
    if args.time_stages:
        for seconds in time_stages(map(str.strip, sys.stdin), train_loader, device, args.max_lr):
            print(seconds, flush=True)
        return
    training = create_training(device, max_lr=args.max_lr, total_steps=args.epochs * len(train_loader))
    for epoch in range(args.epochs):
        start = time.perf_counter()
        losses = list(train_steps(training, train_loader, device))
        rate = len(train.labels) / (time.perf_counter() - start)
        accuracy = evaluate(training[0], test_loader, device)
        loss = sum(losses) / len(losses)
        print(f"epoch {epoch + 1}: loss {loss:.4f}, accuracy {accuracy:.2%}, {rate:,.0f} images/s")


if __name__ == "__main__":
    main()
