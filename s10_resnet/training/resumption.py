"""Which checkpoint a run goes on from, and whether it may."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from s10_resnet.config import Config
from s10_resnet.errors import InputError
from s10_resnet.settings import flag
from s10_resnet.training.run_logger import CHECKPOINT, CONTENT, PREVIOUS, named
from s10_resnet.training.state import EpochRecord
from s10_resnet.utils import console as terminal
from s10_resnet.utils import outputs
from s10_resnet.utils import serialization as checkpoint
from s10_resnet.utils.serialization import CheckpointError

# What may change between the beginning of a run and its end, because the result does not depend on it.
FREE = ("workers", "data_dir", "device", "checkpoint_every_minutes", "tensorboard")


def source(folder: Path, path: Path) -> Path | None:
    """The checkpoint that is named, or the newest; None in a run that was killed before its first."""
    newest, previous = folder / CHECKPOINT, folder / PREVIOUS
    if path.is_dir():
        return next((source for source in (newest, previous) if source.exists()), None)
    if path in (newest, previous):
        return path
    raise InputError(f"--resume {path}: must be the folder of a run, or its {CHECKPOINT} or {PREVIOUS}")


def load(source: Path) -> dict[str, Any]:
    """The content of a training's checkpoint.

    Raises:
        CheckpointError: If it is damaged, or none; the message offers the checkpoint before it, if that one is whole.
    """
    try:
        saved = checkpoint.load(source)
    except CheckpointError as error:
        offer = _offer(source.with_name(PREVIOUS)) if source.name == CHECKPOINT else ""
        raise CheckpointError(f"--resume {error}{offer}") from None
    if {key: type(value) for key, value in saved.items()} != CONTENT:
        raise CheckpointError(f"--resume {source}: is no checkpoint of a training")
    return saved


def _offer(previous: Path) -> str:
    try:
        step = checkpoint.load(previous)["state"]["step"]
    except (CheckpointError, KeyError, TypeError, ValueError):
        return ""
    return f"; the one before it is whole: --resume {previous} goes on after step {step:,}"


def differences(config: Config, saved: dict[str, Any] | None, asked: Mapping[str, Any]) -> list[str]:
    """Settings that were given differently from those of the run, or changed in its folder."""
    fixed = {name: value for name, value in asdict(config).items() if name not in FREE}
    changed = [
        f"{flag(name)} {asked[name]} (the run was begun with {value})"
        for name, value in fixed.items()
        if asked.get(name, value) != value
    ]
    begun = asdict(Config.from_json(saved["config"])) if saved else fixed
    return changed + [
        f"{flag(name)} {value} in config.json (the run was begun with {begun[name]})"
        for name, value in fixed.items()
        if begun[name] != value
    ]


def check_history(folder: Path, saved: dict[str, Any], split: str) -> None:
    """Warns of a ``history.csv`` that contradicts the checkpoint, from which it is written anew."""
    path = folder / "history.csv"
    if not path.exists():
        return
    try:
        written = outputs.read_rows(path)
        epochs = [EpochRecord(**record) for record in saved["state"]["history"]]
        # The latest epoch may be missing, after a kill, and there may be more than the checkpoint before it knows of.
        known = zip(written, named(epochs, split), strict=False)
        if len(written) >= max(1, len(epochs) - 1) and all(row == record for row, record in known):
            return
    except (InputError, KeyError, TypeError):
        pass
    terminal.warn(f"{path} is not what this run wrote: it is written anew from the checkpoint.")


def warn_of_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Says that an environment is not the one a run was begun in, if it is not."""
    before, now = _flat(before), _flat(now)
    changed = [f"{name} {before.get(name)} -> {now.get(name)}" for name in now if before.get(name) != now.get(name)]
    if changed:
        terminal.warn(
            f"The environment is not the one this run was begun in: {', '.join(changed)}.\n"
            "The run goes on, but not to the same bits as without an interruption."
        )


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for key, branch in tree.items()
        for name, value in (branch.items() if isinstance(branch, dict) else [(key, branch)])
    }
