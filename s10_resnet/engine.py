"""The loop: batches in, one record an epoch out. It prints nothing and writes no file."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from s10_resnet.runtime import Runtime

Criterion = Callable[[Tensor, Tensor], Tensor]


class Totals:
    """Loss and hits summed over images and divided once: batch means, averaged, are wrong for a ragged last batch.

    The sums stay on the device, so that adding to them never waits for it; reading `loss` or `accuracy` does.
    """

    def __init__(self, device: torch.device) -> None:
        self.loss_sum = torch.zeros((), dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
        self.hits = torch.zeros((), dtype=torch.int64, device=device)
        self.images = 0
        self.lr = 0.0  # of the latest step

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Takes in a batch: its mean loss, logits ``[B, C]`` and labels ``[B]``."""
        self.loss_sum += loss.detach() * len(labels)
        self.hits += (logits.detach().argmax(1) == labels).sum()
        self.images += len(labels)

    @property
    def loss(self) -> float:
        """Mean loss of an image."""
        return self.loss_sum.item() / self.images

    @property
    def accuracy(self) -> float:
        """Share of the images whose largest logit is their label's."""
        return self.hits.item() / self.images


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch came to. Losses are means over images, accuracies fractions of 1.

    Attributes:
        epoch: Counted from 1.
        train_loss: Measured while the weights changed, on augmented images.
        train_accuracy: Likewise.
        eval_loss: On the unaugmented evaluation images, at the epoch's end.
        eval_accuracy: Likewise.
        lr: Learning rate of the epoch's last step.
        train_seconds: Time of the training steps.
        eval_seconds: Time of the evaluation.
        images_per_second: Training images over ``train_seconds``.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    eval_loss: float
    eval_accuracy: float
    lr: float
    train_seconds: float
    eval_seconds: float
    images_per_second: float


def train_steps(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    criterion: Criterion,
    runtime: Runtime,
) -> Iterator[Totals]:
    """Takes one optimizer step a batch.

    Yields:
        After every step the same running totals, so that whoever looks on decides how often the device is waited for.
    """
    totals = Totals(runtime.device)
    model.train()
    for images, labels in batches:  # uint8 [B, 32, 32, 3], int64 [B]
        images = images.to(runtime.device, non_blocking=True)
        labels = labels.to(runtime.device, non_blocking=True)
        with runtime.autocast():
            logits = model(images).float()
        loss = criterion(logits, labels)
        optimizer.zero_grad()
        runtime.scaler.scale(loss).backward()
        runtime.scaler.step(optimizer)
        runtime.scaler.update()
        totals.lr = scheduler.get_last_lr()[0]
        scheduler.step()
        totals.add(loss, logits, labels)
        yield totals


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor, runtime: Runtime, batch_size: int = 1000) -> Tensor:
    """Logits ``[N, C]`` in fp32 of uint8 images ``[N, 32, 32, 3]`` that lie on the model's device."""
    model.eval()
    with runtime.autocast():
        return torch.cat([model(batch).float() for batch in images.split(batch_size)])


def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, criterion: Criterion, runtime: Runtime
) -> tuple[float, float]:
    """Mean loss and accuracy over all images at once; their logits are small enough to be held together."""
    logits = predict(model, images, runtime)
    totals = Totals(runtime.device)
    totals.add(criterion(logits, labels), logits, labels)
    return totals.loss, totals.accuracy


def fit(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    eval_images: Tensor,
    eval_labels: Tensor,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    criterion: Criterion,
    runtime: Runtime,
    *,
    epochs: int,
    watch: Callable[[Iterator[Totals]], Iterator[Totals]] = iter,
) -> Iterator[EpochRecord]:
    """Trains for ``epochs`` epochs, evaluating after each.

    Args:
        model: From uint8 images ``[B, 32, 32, 3]`` to logits ``[B, C]``, on the runtime's device.
        batches: The batches of the whole run, in order; every epoch takes an equal share of them.
        eval_images: uint8 ``[N, 32, 32, 3]`` on the device.
        eval_labels: int64 ``[N]`` on the device.
        optimizer: Of the model's parameters.
        scheduler: Stepped after every batch.
        criterion: From logits and labels to the mean loss.
        runtime: Device and number format.
        epochs: How many records to yield.
        watch: Wraps the running totals of an epoch's steps, as ``tqdm`` wraps an iterable.
    """
    steps_per_epoch = len(batches) // epochs
    batches = iter(batches)
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        share = islice(batches, steps_per_epoch)
        steps = train_steps(model, share, optimizer, scheduler, criterion, runtime)
        totals = deque(watch(steps), maxlen=1).pop()  # runs the epoch; the last totals are its own
        train_loss, train_accuracy = totals.loss, totals.accuracy  # waits for the device: the clock is read after
        trained = time.perf_counter()
        eval_loss, eval_accuracy = evaluate(model, eval_images, eval_labels, criterion, runtime)
        train_seconds, eval_seconds = trained - start, time.perf_counter() - trained
        yield EpochRecord(
            epoch=epoch,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            eval_loss=eval_loss,
            eval_accuracy=eval_accuracy,
            lr=totals.lr,
            train_seconds=train_seconds,
            eval_seconds=eval_seconds,
            images_per_second=totals.images / train_seconds,
        )
