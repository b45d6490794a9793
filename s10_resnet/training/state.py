"""The state of a training: everything that changes from step to step, and so everything a checkpoint holds.

The order of the images and their augmentation are functions of seed, epoch and batch: there is no random state to save.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from s10_resnet.errors import TrainingError
from s10_resnet.training.run_files import EpochMetrics
from s10_resnet.utils.runtime import Runtime


class RunningMetrics:
    """Loss and accuracy of the epoch in progress: sums over images, divided once.

    A mean of batch means would be wrong for a last batch that is smaller. The sums stay on the device: `update` does
    not synchronize; reading `loss` or `accuracy` does.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.sums = torch.zeros(2, dtype=runtime.sum_dtype, device=runtime.device)  # loss, correct predictions
        # The first step, counted from 1, whose loss was not finite; 0 if there was none.
        self.failed = torch.zeros((), dtype=torch.int64, device=runtime.device)
        self.images = self.steps = 0  # images of all processes together
        self.lr = 0.0  # of the last step
        self.seconds = 0.0  # of all steps

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Adds this process's part of a batch: its mean loss, logits ``[B, C]`` and labels, int64 ``[B]``."""
        self.steps += 1
        self.images += len(labels) * self.runtime.world_size
        loss = loss.detach()
        correct = (logits.detach().argmax(1) == labels).sum()
        batch = self.runtime.all_reduce_sum(torch.stack([(loss * len(labels)).to(self.sums), correct.to(self.sums)]))
        self.sums += batch
        self.failed = torch.where((self.failed == 0) & ~torch.isfinite(batch[0]), self.steps, self.failed)

    @property
    def loss(self) -> float:
        """Mean loss per image."""
        return self.sums[0].item() / self.images

    @property
    def accuracy(self) -> float:
        """Fraction of the images that are classified correctly."""
        return self.sums[1].item() / self.images

    def state_dict(self) -> dict[str, Any]:
        """Returns plain values and a tensor."""
        return {name: getattr(self, name) for name in ("sums", "images", "steps", "lr", "seconds")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.sums = state["sums"].to(self.sums)
        self.images, self.steps, self.lr, self.seconds = (state[n] for n in ("images", "steps", "lr", "seconds"))


class TrainingState:
    """A training in progress.

    The model maps uint8 images ``[B, 32, 32, 3]`` to logits ``[B, C]``; the optimizer must be fused.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: LRScheduler, runtime: Runtime
    ) -> None:
        self.model, self.optimizer, self.scheduler, self.runtime = model, optimizer, scheduler, runtime
        self.ddp_model = runtime.wrap_ddp(model)  # the model itself in a single process
        self.scaler = runtime.new_scaler()
        self.step = 0  # number of optimizer steps taken in the whole run
        self.metrics = RunningMetrics(runtime)  # of the epoch in progress
        self.history: list[EpochMetrics] = []  # of the finished epochs
        self.eval_logits: Tensor | None = None  # after the last of them, fp32 [N, C] on the CPU

    def end_epoch(self, metrics: EpochMetrics, eval_logits: Tensor | None) -> None:
        """Adds the metrics of a finished epoch to the history and resets the running ones."""
        self.history.append(metrics)
        self.eval_logits = eval_logits
        self.metrics = RunningMetrics(self.runtime)

    def check_loss(self) -> None:
        """Raises `TrainingError` if a loss of this epoch was not finite. Synchronizes with the device."""
        failed = int(self.metrics.failed)
        if failed:
            raise TrainingError(f"epoch {len(self.history) + 1}, step {failed}: the loss is not finite")

    def check_weights(self) -> None:
        """Raises `TrainingError` if a weight is not finite: a bad gradient shows in no loss before the next step."""
        if not all(bool(tensor.isfinite().all()) for tensor in self.model.state_dict().values()):
            raise TrainingError(f"epoch {len(self.history) + 1}, step {self.metrics.steps}: the weights are not finite")

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors and plain values from which `load_state_dict` restores the same state bit for bit."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "metrics": self.metrics.state_dict(),
            "history": [asdict(metrics) for metrics in self.history],
            "eval_logits": self.eval_logits,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if state["scaler"]:  # empty if the run was begun in another precision
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.metrics.load_state_dict(state["metrics"])
        self.history = [EpochMetrics(**metrics) for metrics in state["history"]]
        self.eval_logits = state["eval_logits"]
