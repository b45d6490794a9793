"""Runs as the text files in their folders tell them: their settings, their epochs and what they came to.

The weights are never read. The files may be a stranger's, so they are checked before use, and what is shown of them is
printable and short.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from s10_resnet.errors import InputError
from s10_resnet.training.resumption import FREE
from s10_resnet.utils import console as terminal
from s10_resnet.utils import outputs

REPEATED = {"seed", "name", "output_dir", *FREE}  # runs that differ in nothing else are repetitions of each other
ENVIRONMENT = ("device", "precision", "processes", "hardware")
CURVES = ("train_loss", "train_accuracy", "eval_loss", "eval_accuracy")
DASH, LONGEST = "\N{EN DASH}", 40


@dataclass(frozen=True)
class Run:
    """What the text files of a run's folder say.

    Attributes:
        path: The folder, as it was given or found.
        parent: The given folder that it was found in, or None if it was given itself.
        seed: As in its settings; None if they have none.
        settings: Those that may influence the result.
        dataset: What it was trained on, which ``auto`` does not tell.
        split: What it was evaluated on, ``test`` or ``val``.
        status: ``completed``, ``interrupted``, ``failed``; ``unfinished`` if it is going on or was killed.
        curves: By name one of `CURVES`, float ``[E]``: a value an epoch.
        figures: What it came to; a loss may be NaN.
        environment: Of `ENVIRONMENT` what its summary holds.
    """

    path: Path
    parent: Path | None
    seed: Any
    settings: dict[str, Any]
    dataset: str
    split: str
    status: str
    curves: dict[str, np.ndarray]
    figures: dict[str, float]
    environment: dict[str, Any]

    @property
    def epochs(self) -> int:
        """Epochs that have ended."""
        return len(self.curves["eval_loss"])


def read_all(paths: Sequence[Path]) -> list[Run]:
    """The runs in the order they were given, each once."""
    found: dict[Path, tuple[Path, Path | None]] = {}
    for path in paths:
        if _is_file(path / "config.json"):
            found.setdefault(path.resolve(), (path, None))
            continue
        children = [child for child in _children(path) if _is_file(child / "config.json")]
        if not children:
            raise InputError(f"RUN {path}: must be the folder of a run, or of several runs")
        begun = [child for child in children if _is_file(child / "history.csv")]
        if not begun:
            raise _no_epoch(path)
        for child in children:
            if child in begun:
                found.setdefault(child.resolve(), (child, path))
            else:
                terminal.complain(f"{child} is left out: it has no epoch to compare")
    if len(found) < 2:
        given = " ".join(map(str, paths))
        raise InputError(f"RUN {given}: must be at least two runs, or a folder of them; this is one")
    return [_read(path, parent) for path, parent in found.values()]


def _read(path: Path, parent: Path | None) -> Run:
    config = outputs.read_json(path / "config.json")
    if not isinstance(config, dict) or not all(map(_is_setting, config.values())):
        raise InputError(f"{path / 'config.json'}: does not hold the settings of a run")
    if not _is_file(path / "history.csv"):
        raise _no_epoch(path)
    history = outputs.read_rows(path / "history.csv")
    if not history:
        raise _no_epoch(path)
    split, columns = _columns(path / "history.csv", history)
    summary = _summary(path / "summary.json", len(history)) if _is_file(path / "summary.json") else {}
    status = summary.get("status") if summary.get("epochs") == len(history) else None  # else it goes on since
    dataset = summary.get("dataset") or str(config.get("dataset", DASH))
    settings = {name: value for name, value in config.items() if name not in REPEATED}
    if "dataset" in settings:
        settings["dataset"] = dataset
    seconds = columns["train_seconds"]
    return Run(
        path=path,
        parent=parent,
        seed=config.get("seed"),
        settings=settings,
        dataset=shown(dataset),
        split=split,
        status=shown(status or "unfinished"),
        curves={name: columns[name] for name in CURVES},
        figures={
            "final_accuracy": float(columns["eval_accuracy"][-1]),
            "best_accuracy": float(columns["eval_accuracy"].max()),
            "best_epoch": int(columns["eval_accuracy"].argmax()) + 1,
            "final_loss": float(columns["eval_loss"][-1]),
            "final_train_accuracy": float(columns["train_accuracy"][-1]),
            "final_train_loss": float(columns["train_loss"][-1]),
            "train_seconds": float(seconds.sum()),
            "images_per_second": float((columns["images_per_second"] * seconds).sum() / seconds.sum()),
        },
        environment={name: summary[name] for name in ENVIRONMENT if name in summary},
    )


def _columns(path: Path, history: list[dict[str, float]]) -> tuple[str, dict[str, np.ndarray]]:
    """The split of a history, and its columns, each float ``[E]``, under the names of an `EpochRecord`."""
    splits = [split for split in ("test", "val") if f"{split}_accuracy" in history[0]]
    names = {name: name.replace("eval", "".join(splits)) for name in (*CURVES, "train_seconds", "images_per_second")}
    try:
        columns = {name: np.array([row[column] for row in history]) for name, column in names.items()}
        whole = [row["epoch"] for row in history] == list(range(1, len(history) + 1))
    except KeyError:
        whole = False
    if whole:
        shares = np.concatenate([columns["train_accuracy"], columns["eval_accuracy"]])
        speeds = np.concatenate([columns["train_seconds"], columns["images_per_second"]])
        whole = ((shares >= 0) & (shares <= 1)).all() and ((speeds > 0) & (speeds < 1e15)).all()
    if not whole or len(splits) != 1:
        raise InputError(f"{path}: is not the history of a run")
    for name in "train_loss", "eval_loss":
        columns[name] = np.where(np.abs(columns[name]) < 1e30, columns[name], np.nan)  # what is more cannot be drawn
    return splits[0], columns


def _summary(path: Path, epochs: int) -> dict[str, Any]:
    summary = outputs.read_json(path)
    kinds = {"status": str, "dataset": str, "epochs": int}
    # The history is written first, so it may know of more epochs, but not of fewer.
    if (
        not isinstance(summary, dict)
        or not all(isinstance(summary.get(name), kind) for name, kind in kinds.items())
        or not 0 < summary["epochs"] <= epochs
    ):
        raise InputError(f"{path}: is not the summary of the run whose history.csv is beside it")
    return summary


def _children(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError as error:
        raise InputError(
            f"RUN {path}: must be the folder of a run, or of several runs, and cannot be read ({error.strerror})"
        ) from None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()  # and no pipe, which would be waited for
    except OSError:
        return False


def _is_setting(value: Any) -> bool:
    if isinstance(value, list):
        return not any(isinstance(item, list) for item in value) and all(map(_is_setting, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | int)


def _no_epoch(path: Path) -> InputError:
    return InputError(f"RUN {path}: must have an epoch that has ended, and has no history.csv with one yet")


def shown(text: str) -> str:
    """Printable, and not longer than a column may be."""
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2 - 2]}...{text[1 - LONGEST // 2 :]}"
