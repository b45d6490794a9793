"""All that changes while a network is trained, which is all that a checkpoint has to hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from s10_resnet.errors import TrainingError
from s10_resnet.utils.runtime import Runtime


def hard(targets: Tensor) -> Tensor:
    """Labels, int64 ``[B]``, of targets that are labels already or shares of the classes, float ``[B, C]``."""
    return targets if targets.ndim == 1 else targets.argmax(1)


class Totals:
    """Loss and hits of an epoch, summed over images and divided once: batch means are wrong for a ragged last batch.

    The sums stay on the device, so that adding to them never waits for it; reading `loss`, `accuracy` or `failed_step`
    does.

    Attributes:
        images: Images taken in, by all processes together.
        steps: Batches taken in.
        lr: Learning rate of the latest step.
        seconds: Time of the steps, the clock being stopped by whoever takes time for something else.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.sums = torch.zeros(2, dtype=runtime.sum_dtype, device=runtime.device)  # loss, hits
        self.failed = torch.zeros((), dtype=torch.int64, device=runtime.device)
        self.images = self.steps = 0
        self.lr = self.seconds = 0.0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Takes in this process's part of a batch: its mean loss, logits ``[B, C]`` and targets.

        Targets are labels, int64 ``[B]``, or shares of the classes, float ``[B, C]``, of which the largest counts.
        """
        self.steps += 1
        self.images += len(labels) * self.runtime.world_size
        loss = loss.detach()
        hits = (logits.detach().argmax(1) == hard(labels)).sum()
        batch = self.runtime.total(torch.stack([(loss * len(labels)).to(self.sums), hits.to(self.sums)]))
        self.sums += batch
        self.failed = torch.where((self.failed == 0) & ~torch.isfinite(batch[0]), self.steps, self.failed)

    @property
    def loss(self) -> float:
        """Mean loss of an image."""
        return self.sums[0].item() / self.images

    @property
    def accuracy(self) -> float:
        """Share of the images whose largest logit is their label's."""
        return self.sums[1].item() / self.images

    @property
    def failed_step(self) -> int:
        """The first step, counted from 1, whose loss was not a finite number; 0 if there was none."""
        return int(self.failed.item())

    def state_dict(self) -> dict[str, Any]:
        """Plain values and a tensor."""
        return {name: getattr(self, name) for name in ("sums", "images", "steps", "lr", "seconds")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        self.sums = state["sums"].to(self.sums)
        self.images, self.steps, self.lr, self.seconds = (state[n] for n in ("images", "steps", "lr", "seconds"))


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


class TrainingState:
    """A training in progress.

    The order of the images and their augmentation are functions of seed, epoch and batch: no random state is needed.

    Args:
        model: From uint8 images ``[B, 32, 32, 3]`` to logits ``[B, C]``, on the runtime's device.
        optimizer: A fused one of the model's parameters.
        scheduler: Stepped after every batch.
        runtime: Device, number format, and the other processes if there are any.
        average: A moving average of the model, if there is to be one.

    Attributes:
        result: What is evaluated and saved: the average, or the model itself.
        step: Steps taken in the whole run, whatever the workers have prefetched.
        totals: Of the epoch that has begun.
        history: Of the epochs that have ended.
        logits: Of the evaluation images when the latest of them ended, fp32 ``[N, C]`` on the CPU.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler,
        runtime: Runtime,
        average: AveragedModel | None = None,
    ) -> None:
        self.model, self.optimizer, self.scheduler, self.runtime = model, optimizer, scheduler, runtime
        self.average = average
        self.result = model if average is None else average.module
        self.parallel = runtime.parallel(model)
        self.step = 0
        self.totals = Totals(runtime)
        self.history: list[EpochRecord] = []
        self.logits: Tensor | None = None

    def end_step(self) -> None:
        """Counts a step whose update has been made."""
        self.scheduler.step()
        if self.average:
            self.average.update_parameters(self.model)
        self.step += 1

    def check(self) -> None:
        """Waits for the device and raises `TrainingError` if a loss was not a finite number."""
        if self.totals.failed_step:
            raise TrainingError(
                f"epoch {len(self.history) + 1}, step {self.totals.failed_step}: the loss is no longer a finite number"
            )

    def check_weights(self) -> None:
        """Raises `TrainingError` if the weights are not finite: a broken gradient shows in no loss before the next."""
        if not all(bool(weight.isfinite().all()) for weight in self.model.state_dict().values()):
            raise TrainingError(
                f"epoch {len(self.history) + 1}, step {self.totals.steps}: the weights are no longer finite numbers"
            )

    def end_epoch(self, record: EpochRecord, logits: Tensor | None) -> None:
        """Takes the record in and begins the next epoch."""
        self.history.append(record)
        self.logits = logits
        self.totals = Totals(self.runtime)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, from which `load_state_dict` makes the same state bit for bit."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.runtime.scaler.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "step": self.step,
            "totals": self.totals.state_dict(),
            "history": [asdict(record) for record in self.history],
            "logits": self.logits,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.runtime.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.step = state["step"]
        self.totals.load_state_dict(state["totals"])
        self.history = [EpochRecord(**record) for record in state["history"]]
        self.logits = state["logits"]
