"""Reads what the scripts leave into numbers and tensors that can be compared."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.golden.names import CLOCK, canonical

LAST, CHECKPOINT = "last.pt", "checkpoint.pt"
SWEEP_KEYS = {"train_accuracy", "accuracy", "accuracy_tta_flip", "accuracy_tta_flip_shift"}
EVALUATION_KEYS = {"accuracy", "loss"}


class ScenarioError(Exception):
    """A script failed, or its files are not what can be compared."""


@dataclass(frozen=True)
class Result:
    """What one scenario came to in one revision.

    Attributes:
        numbers: The ``repr`` of each number, by its canonical name.
        tensors: Groups of tensors, each in order: names of tensors are free to change.
    """

    numbers: dict[str, str]
    tensors: dict[str, list[Tensor]] = field(default_factory=dict)


def read_training(folder: Path) -> Result:
    """Reads the history, the last weights and the optimizer's moments of a run folder."""
    rows = read_csv(folder, {"epoch", "train_loss"})
    numbers = {
        f"epoch {row['epoch']} {name}": value for row in rows for name, value in row.items() if not CLOCK.search(name)
    }
    last = torch.load(find(folder, LAST), weights_only=True)
    checkpoint = torch.load(find(folder, CHECKPOINT), weights_only=True)
    return Result(numbers, {"weights": weights(last), "moments": moments(checkpoint)})


def read_lr_finder(folder: Path) -> Result:
    """Reads the curve of a range test, with what was made of it in further columns."""
    rows = read_csv(folder, {"lr", "loss"})
    return Result({f"step {step} {name}": value for step, row in enumerate(rows, 1) for name, value in row.items()})


def read_sweep(folder: Path) -> Result:
    """Reads the accuracies of all trainings of a sweep, each named by its learning rate and seed, as labels may change.

    The rows are the list of dicts with a seed in a JSON file of the folder, or else the summaries of its run folders.
    """
    trees = [read_json(path) for path in sorted(folder.glob("*.json"))]
    rows = next((rows for tree in trees for rows in lists_of_rows(tree)), [])
    rows = rows or [read_json(path) for path in sorted(folder.glob("*/summary.json"))]
    numbers: dict[str, str] = {}
    for row in rows:
        values = {canonical(key): number(value) for key, value in leaves(row)}
        name = f"max_lr {values.get('max_lr')} seed {values.get('seed')}"
        found = {f"{name} {key}": values[key] for key in values if key in SWEEP_KEYS}
        if not found or found.keys() & numbers.keys():
            raise ScenarioError(f"{folder.name}: no accuracies, or those of two trainings, for {name}")
        numbers |= found
    return Result(numbers)


def read_evaluation(content: Any) -> Result:
    """Reads loss and accuracy of an evaluation's JSON, and the accuracy of each class in order."""
    top = {canonical(key): value for key, value in content.items()}
    numbers = {key: number(value) for key, value in top.items() if key in EVALUATION_KEYS}
    nested = [value for tree in top.values() for key, value in leaves(tree) if key == "accuracy"]
    return Result(numbers | {f"class {place} accuracy": number(value) for place, value in enumerate(nested)})


def read_predictions(content: Any) -> Result:
    """Reads the probabilities of a prediction's JSON, each with the class that stands beside it."""
    found = [one for one in dicts(content) if isinstance(one.get("probability"), float)]
    words = [" ".join(str(value) for value in one.values() if isinstance(value, str)) for one in found]
    named = zip(words, found, strict=True)
    return Result(
        {f"probability {i} {word}".strip(): number(one["probability"]) for i, (word, one) in enumerate(named)}
    )


def weights(content: dict[str, Any]) -> list[Tensor]:
    """Returns the tensors, buffers included, of the state dict in a file of weights: ``model``, or the only one."""
    state_dicts = {
        key: value
        for key, value in content.items()
        if isinstance(value, dict) and value and all(isinstance(item, Tensor) for item in value.values())
    }
    if "model" not in state_dicts and len(state_dicts) != 1:
        raise ScenarioError(f"{LAST}: holds {len(state_dicts)} state dicts, and none under 'model'")
    return list(state_dicts.get("model", next(iter(state_dicts.values()))).values())


def moments(content: Any) -> list[Tensor]:
    """Returns the tensors of all optimizers' state dicts, wherever in a checkpoint they are, sorted by content.

    Their order is that of the parameter groups, which may change without any effect on the training.
    """
    found = [
        value
        for one in dicts(content)
        if {"state", "param_groups"} <= one.keys()
        for _, state in sorted(one["state"].items())
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    return sorted(found, key=lambda tensor: (str(tensor.dtype), tuple(tensor.shape), tensor.numpy().tobytes()))


def read_csv(folder: Path, columns: set[str]) -> list[dict[str, str]]:
    """Reads the one CSV file in a folder that has these columns, under canonical names."""
    found = []
    for path in sorted(folder.rglob("*.csv")):
        with path.open(newline="") as file:
            rows = [{canonical(name): number(value) for name, value in row.items()} for row in csv.DictReader(file)]
        if rows and columns <= rows[0].keys():
            found.append(rows)
    if len(found) != 1:
        raise ScenarioError(f"{folder.name}: holds {len(found)} CSV files with {', '.join(sorted(columns))}")
    return found[0]


def read_json(path: Path) -> Any:
    """Reads a JSON file."""
    return json.loads(path.read_text())


def find(folder: Path, name: str) -> Path:
    """Returns the one file of this name in or below a folder."""
    found = list(folder.rglob(name))
    if len(found) != 1:
        raise ScenarioError(f"{folder.name}: holds {len(found)} files {name}")
    return found[0]


def number(value: Any) -> str:
    """Returns the ``repr`` of a number, the same for ``1`` and ``1.0``; what is no number stays what it is."""
    try:
        return repr(float(value))
    except (TypeError, ValueError):
        return str(value)


def dicts(tree: Any) -> Iterator[dict[str, Any]]:
    """Yields all dicts in a tree of dicts and lists, outer ones first."""
    if isinstance(tree, dict):
        yield tree
    for branch in branches(tree):
        yield from dicts(branch)


def lists_of_rows(tree: Any) -> Iterator[list[dict[str, Any]]]:
    """Yields the lists in a tree that hold nothing but dicts with a seed."""
    if isinstance(tree, list) and tree and all(isinstance(row, dict) and "seed" in row for row in tree):
        yield tree
    for branch in branches(tree):
        yield from lists_of_rows(branch)


def leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yields key and value of all that is no container in a tree of dicts and lists."""
    if isinstance(tree, dict):
        yield from ((key, value) for key, value in tree.items() if not isinstance(value, dict | list))
    for branch in branches(tree):
        yield from leaves(branch)


def branches(tree: Any) -> list[Any]:
    """Returns the containers and values directly in a container."""
    return list(tree.values()) if isinstance(tree, dict) else tree if isinstance(tree, list) else []
