"""What two runs are compared by: all their results but those of a clock."""

import csv
import json
from pathlib import Path
from typing import Any

import torch

from s10_resnet.utils import serialization

CLOCK = {"train_seconds", "eval_seconds", "images_per_second", "seconds"}
PLACE = {"workers", "git_commit"}  # on which the numbers do not depend


def outcome(folder: Path) -> list[Any]:
    """Weights, moments, schedule, metrics, history and summary of a run, for ``==`` to compare bit for bit."""
    state = serialization.load(folder / "checkpoint.pt")["state"]
    last = serialization.load(folder / "last.pt")["model"]
    best = serialization.load(folder / "best.pt")["model"]
    with (folder / "history.csv").open(newline="") as file:
        history = list(csv.DictReader(file))
    summary = json.loads((folder / "summary.json").read_text())
    return without_clock([state, last, best, history, summary])


def without_clock(tree: Any) -> Any:
    """Returns the same with tensors as bytes and without what a clock measured."""
    if isinstance(tree, torch.Tensor):
        return tree.numpy().tobytes()
    if isinstance(tree, dict):
        return {key: without_clock(value) for key, value in tree.items() if key not in CLOCK | PLACE}
    return [without_clock(value) for value in tree] if isinstance(tree, list | tuple) else tree
