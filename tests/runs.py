"""Small trainings, and faults that happen in the middle of one."""

from __future__ import annotations

import csv
import math
import os
import signal
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from s10_resnet.config import TrainConfig
from s10_resnet.data import dataset, synthetic
from s10_resnet.data.dataset import Split
from s10_resnet.models import resnet
from s10_resnet.models.resnet import Normalize
from s10_resnet.training import run_logger, setup, trainer
from s10_resnet.training.lr_finder import LRCurve
from s10_resnet.training.run_logger import RunLogger
from s10_resnet.training.setup import Setup
from s10_resnet.utils.signals import ShutdownRequested

PLOTS = {"samples.png", "lr_schedule.png", "curves.png", "confusion.png", "misclassified.png"}
WEIGHTS = {"last.pt", "best.pt", "checkpoint.pt", "checkpoint.previous.pt"}
RECORDS = {"config.json", "history.csv", "summary.json"}
FILES = PLOTS | WEIGHTS | RECORDS | {"MODEL_CARD.md", "report.html"}

DRAW = {name: getattr(RunLogger, name) for name in ("_draw_setup", "_draw_results")}  # `use_small_parts` replaces them
STEPS = 3  # per epoch of `small`: batches of 25, 25 and 10 images
# A range test whose minimum is at 10**-2.5.
PARABOLA = LRCurve(np.logspace(-6, 0, 50), 1 + (np.linspace(-6, 0, 50) + 2.5) ** 2)


def small(folder: Path, **changes: Any) -> TrainConfig:
    """Two epochs of 60 images."""
    settings = {
        "dataset": "synthetic",
        "max_train_samples": 60,
        "batch_size": 25,
        "epochs": 2,
        "precision": "fp32",
        "device": "cpu",
        "dirac_init": False,  # for convolutions of other shapes
        "whitening_init": False,
        "output_dir": folder,
        "name": "run",
    }
    return TrainConfig(**{**settings, **changes})


def small_network(mean, std, *, num_classes=10, logit_scale=1.0):
    conv = nn.Conv2d(3, 64, 3, stride=8)  # of a shape that whitening_init_ takes; 4 x 4 positions
    layers = (conv, nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(1024, num_classes, bias=False))
    names = ("conv", "norm", "flat", "linear")
    return nn.Sequential(
        OrderedDict(normalize=Normalize(mean, std), resnet=nn.Sequential(OrderedDict(zip(names, layers, strict=True))))
    )


@cache
def small_splits() -> tuple[Split, Split]:
    """200 training and 200 test images."""
    train, test = (Split(*synthetic.generate(200, seed), synthetic.CLASSES) for seed in (1, 2))
    return train, test


def use_small_parts(patch: pytest.MonkeyPatch) -> None:
    """Replaces what a training takes long for: the network, the images and the plots."""
    patch.setattr(dataset, "load_synthetic", small_splits)
    for module in (setup, resnet):  # `resnet` is where `load_model` looks
        patch.setattr(module, "build_model", small_network)
    for name in DRAW:
        patch.setattr(RunLogger, name, lambda *arguments: None)
    patch.setattr(run_logger, "EPOCH_END_SECONDS", 0.0)  # a checkpoint at the end of every epoch


@contextmanager
def fault(call: int, action: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Calls a function with a loss that a training has just computed.

    Args:
        call: Which loss, counted from 1: of `small` 1, 2 and 3 are those of the steps of the first epoch, 4 is that of
            its evaluation, 5, 6 and 7 are those of the steps of the second epoch, 8 is that of its evaluation.
        action: Sends a signal, raises an error, or returns the loss to use instead.
    """
    build = Setup.build_criterion
    calls = 0

    class Faulty(nn.Module):
        def __init__(self, criterion: nn.Module) -> None:
            super().__init__()
            self.criterion = criterion

        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            loss = self.criterion(logits, labels)
            changed = action(loss) if calls == call else None
            return loss if changed is None else changed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Setup, "build_criterion", lambda setup: Faulty(build(setup)))
        yield


def send(*signums: int) -> Callable[..., None]:
    """An action of `fault`: sends this process signals."""

    def act(*_: Any) -> None:
        for signum in signums:
            os.kill(os.getpid(), signum)

    return act


def nan(loss: Tensor) -> Tensor:
    """An action of `fault`: the loss is NaN."""
    return loss * math.nan


def nan_gradient(loss: Tensor) -> Tensor:
    """An action of `fault`: the loss stays as it is, but its gradients are NaN."""
    return loss + (0 * loss).sqrt()


def failing(error: BaseException) -> Callable[..., Any]:
    """An action of `fault`: raises an error."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def stop(config: TrainConfig, call: int) -> Path:
    """Trains until a SIGTERM comes, see `fault`, and returns the run folder."""
    with fault(call, send(signal.SIGTERM)), pytest.raises(ShutdownRequested):
        trainer.train(config)
    return config.output_dir / config.name


def at_call(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, action: Callable[[], Any]) -> None:
    """Patches a function to call ``action`` right before its ``call``-th call."""
    function, calls = getattr(owner, name), []

    def patched(*arguments, **keywords):
        calls.append(1)
        if len(calls) == call:
            action()
        return function(*arguments, **keywords)

    patch.setattr(owner, name, patched)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def names_in(folder: Path) -> set[str]:
    """The names in a folder but that of the lock file, which stays."""
    return {path.name for path in folder.iterdir()} - {".lock"}


def same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
