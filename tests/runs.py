"""Small runs for the tests of what happens to them."""

import csv
import os
import signal
from collections import OrderedDict

import numpy as np
from torch import nn

from s10_resnet.config import Config
from s10_resnet.models import resnet as model
from s10_resnet.training import lr_finder

PICTURES = {"samples.png", "lr_schedule.png", "curves.png", "confusion.png", "mistakes.png"}
WEIGHTS = {"last.pt", "best.pt", "checkpoint.pt", "checkpoint.previous.pt"}
FILES = PICTURES | WEIGHTS | {"config.json", "history.csv", "summary.json", "MODEL_CARD.md", "report.html"}
BOWL = lr_finder.LRCurve(np.logspace(-6, 0, 50), 1 + (np.linspace(-6, 0, 50) + 2.5) ** 2)


def small(folder, **changes):
    settings = {
        "dataset": "synthetic",
        "limit": 60,
        "batch_size": 25,
        "epochs": 2,
        "precision": "fp32",
        "device": "cpu",
        "output_dir": folder,
        "name": "run",
    }
    return Config(**{**settings, **changes})


def rows(folder):
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def small_network(mean, std, *, classes, **_):
    layers = (nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(512, classes, bias=False))
    names = ("conv", "norm", "flat", "linear")
    return nn.Sequential(
        OrderedDict(
            normalize=model.Normalize(mean, std), resnet=nn.Sequential(OrderedDict(zip(names, layers, strict=True)))
        )
    )


def at_call(monkeypatch, owner, name, call, signum=signal.SIGTERM):
    """Sends this process a signal right before the given call of a function."""
    function, calls = getattr(owner, name), []

    def signalled(*arguments, **keywords):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signum)
        return function(*arguments, **keywords)

    monkeypatch.setattr(owner, name, signalled)


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def note_batches(monkeypatch, owner, note):
    """Calls ``note`` with the size of each batch that a module's ``train_steps`` takes a step with."""
    steps = owner.train_steps

    def noted(first, batches, *more):
        return steps(first, (note(len(batch[1])) or batch for batch in batches), *more)

    monkeypatch.setattr(owner, "train_steps", noted)
