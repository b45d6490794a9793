"""The loop: batches in, one record an epoch out. It prints nothing and writes no file."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from s10_resnet.errors import TrainingError
from s10_resnet.training.state import EpochRecord, Totals, TrainingState
from s10_resnet.utils.runtime import Runtime
from s10_resnet.utils.signals import uninterrupted

Criterion = Callable[[Tensor, Tensor], Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]  # uint8 [B, 32, 32, 3], int64 [B]


def train_steps(state: TrainingState, batches: Batches, criterion: Criterion) -> Iterator[Totals]:
    """Takes one optimizer step a batch; a step is whole or not begun, whatever signal arrives.

    Yields:
        After every step the same running totals, so that whoever looks on decides how often the device is waited for.

    Raises:
        TrainingError: If a loss is not a finite number. The weights are those before that step.
    """
    runtime, optimizer, totals = state.runtime, state.optimizer, state.totals
    state.model.train()
    start = time.perf_counter()
    for images, labels in batches:  # uint8 [B, 32, 32, 3], int64 [B]
        with uninterrupted():
            images = images.to(runtime.device, non_blocking=True)
            labels = labels.to(runtime.device, non_blocking=True)
            with runtime.autocast():
                logits = state.parallel(images).float()
            loss = criterion(logits, labels)
            totals.add(loss, logits, labels)
            if runtime.device.type == "cpu":
                state.check()
            # Where this is 1, a fused optimizer leaves weights and moments alone, on the device: nobody waits for it.
            optimizer.found_inf = (totals.failed > 0).float()
            optimizer.zero_grad()
            runtime.scaler.scale(loss).backward()
            runtime.scaler.step(optimizer)
            runtime.scaler.update()
            totals.lr = state.scheduler.get_last_lr()[0]
            state.end_step()
            now = time.perf_counter()
            totals.seconds += now - start
            start = now
        yield totals
    state.check()  # waits for the device: the clock is read after
    totals.seconds += time.perf_counter() - start


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor, runtime: Runtime, batch_size: int = 1000) -> Tensor:
    """Logits ``[N, C]`` in fp32 of uint8 images ``[N, 32, 32, 3]`` that lie on the model's device."""
    model.eval()
    with runtime.autocast():
        return torch.cat([model(batch).float() for batch in images.split(batch_size)])


def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, criterion: Criterion, runtime: Runtime
) -> tuple[float, float, Tensor]:
    """Mean loss, accuracy, and the logits fp32 ``[N, C]`` on the CPU, which are small enough to be held together."""
    logits = predict(model, images, runtime)
    loss = criterion(logits, labels).item()
    accuracy = (logits.argmax(1) == labels).sum().item() / len(labels)
    return loss, accuracy, logits.cpu()


def fit(
    state: TrainingState,
    batches: Batches,
    criterion: Criterion,
    evaluate: Callable[[], tuple[float, float, Tensor | None]],
    *,
    epochs: int,
    steps_per_epoch: int,
    watch: Callable[[Iterator[Totals]], Iterator[Totals]] = iter,
) -> Iterator[EpochRecord]:
    """Trains up to the end of epoch ``epochs``, evaluating after each.

    Args:
        state: Where to begin, in the middle of an epoch or not; it is the state of the training at all times.
        batches: The batches from there to the end of the run, in order.
        criterion: From logits and labels to the mean loss.
        evaluate: Gives loss, accuracy and logits of the evaluation images.
        epochs: Of the whole run.
        steps_per_epoch: Batches in an epoch.
        watch: Wraps the running totals of an epoch's steps, as ``tqdm`` wraps an iterable.

    Yields:
        The record of each epoch that ends, once the state holds it.

    Raises:
        TrainingError: If a loss is not a finite number.
    """
    batches = iter(batches)
    while len(state.history) < epochs:
        epoch, totals = len(state.history) + 1, state.totals
        share = islice(batches, epoch * steps_per_epoch - state.step)
        deque(watch(train_steps(state, share, criterion)), maxlen=0)  # runs the epoch
        start = time.perf_counter()
        eval_loss, eval_accuracy, logits = evaluate()
        if not math.isfinite(eval_loss):
            raise TrainingError(f"epoch {epoch}: the loss of the evaluation is not a finite number")
        record = EpochRecord(
            epoch=epoch,
            train_loss=totals.loss,
            train_accuracy=totals.accuracy,
            eval_loss=eval_loss,
            eval_accuracy=eval_accuracy,
            lr=totals.lr,
            train_seconds=totals.seconds,
            eval_seconds=time.perf_counter() - start,
            images_per_second=totals.images / totals.seconds,
        )
        with uninterrupted():
            state.end_epoch(record, logits)
        yield record
