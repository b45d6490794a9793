"""One epoch of training as a plain function."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from s10_resnet.training.state import TrainingState
from s10_resnet.utils.signals import defer_signals


def train_one_epoch(
    state: TrainingState,
    batches: Iterable[tuple[Tensor, Tensor]],
    criterion: nn.Module,
    on_step: Callable[[TrainingState], None] = lambda state: None,
) -> None:
    """Takes one optimizer step per batch. A signal never interrupts a step.

    The loss is not read in a step, so nothing synchronizes with the device. A non-finite loss sets ``found_inf`` of the
    fused optimizer, which makes it skip this update and all that follow in the epoch, on the device.

    Args:
        state: Changed in place.
        batches: Images, uint8 ``[B, 32, 32, 3]``, and labels, int64 ``[B]``.
        criterion: From logits and labels to the mean loss.
        on_step: Called after every step.

    Raises:
        TrainingError: If a loss is not finite. The parameters are those before that step, BatchNorm's running
            statistics are not.
    """
    runtime, optimizer, metrics = state.runtime, state.optimizer, state.metrics
    state.model.train()
    start = time.perf_counter()
    for images, labels in batches:  # uint8 [B, 32, 32, 3], int64 [B]
        with defer_signals():
            images = images.to(runtime.device, non_blocking=True)
            labels = labels.to(runtime.device, non_blocking=True)
            with runtime.autocast():
                logits = state.ddp_model(images).float()  # [B, C]
            loss = criterion(logits, labels)
            metrics.update(loss, logits, labels)
            if runtime.device.type == "cpu":  # where nothing runs asynchronously
                state.check_loss()
            failed = metrics.failed > 0
            optimizer.found_inf = failed.float()  # type: ignore[attr-defined]  # read by fused optimizers
            if state.scaler.is_enabled():  # GradScaler overwrites found_inf; a NaN loss makes it skip the step
                loss = loss * torch.where(failed, torch.nan, 1.0)
            optimizer.zero_grad()
            state.scaler.scale(loss).backward()
            state.scaler.step(optimizer)
            state.scaler.update()
            metrics.lr = float(state.scheduler.get_last_lr()[0])
            state.scheduler.step()
            state.step += 1
            now = time.perf_counter()
            metrics.seconds += now - start
            start = now
        on_step(state)
    state.check_loss()  # synchronizes: the clock is read after it
    metrics.seconds += time.perf_counter() - start
