"""What two runs are compared by: everything they come to but what a clock measured."""

import csv
import json
from pathlib import Path

import torch

from s10_resnet.utils import serialization as checkpoint

CLOCK = {"train_seconds", "eval_seconds", "test_seconds", "images_per_second", "seconds"}
PLACE = {"workers", "git_commit"}  # of no consequence to the numbers


def outcome(folder: Path) -> list:
    """Weights, moments, schedule, totals, history and summary of a run, for ``==`` to compare bit for bit."""
    state = checkpoint.load(folder / "checkpoint.pt")["state"]
    last = checkpoint.load(folder / "last.pt")["model"]
    best = checkpoint.load(folder / "best.pt")["model"]
    with (folder / "history.csv").open(newline="") as file:
        history = list(csv.DictReader(file))
    summary = json.loads((folder / "summary.json").read_text())
    return without_clock([state, last, best, history, summary])


def without_clock(tree):
    """The same with tensors as bytes and without what a clock measured."""
    if isinstance(tree, torch.Tensor):
        return tree.numpy().tobytes()
    if isinstance(tree, dict):
        return {key: without_clock(value) for key, value in tree.items() if key not in CLOCK | PLACE}
    return [without_clock(value) for value in tree] if isinstance(tree, list | tuple) else tree
