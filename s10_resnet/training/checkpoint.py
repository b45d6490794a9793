"""Checkpoints of a training: what they hold, which one a run resumes from, and with which settings."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from s10_resnet.config import TrainConfig, flag, printable
from s10_resnet.errors import InputError
from s10_resnet.training.run_files import check_epoch
from s10_resnet.training.state import TrainingState
from s10_resnet.utils import serialization
from s10_resnet.utils.console import logger
from s10_resnet.utils.runtime import resolve_runtime
from s10_resnet.utils.serialization import CheckpointError

C = TypeVar("C", bound=TrainConfig)

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
CONTENT = {"state": dict, "max_lr": float, "config": dict, "dataset": str, "environment": dict}
# Settings that may change when a run is resumed, because the result does not depend on them.
RESUME_OVERRIDES = ("workers", "data_dir", "device", "checkpoint_every_minutes", "tensorboard")


def find_checkpoint(run_dir: Path, path: Path) -> Path | None:
    """Returns the checkpoint that ``path`` names, or the newest of the run; None if the run has none yet.

    Raises:
        InputError: If ``path`` is neither the run folder nor one of its checkpoints.
    """
    newest, previous = run_dir / CHECKPOINT, run_dir / PREVIOUS
    if path.is_dir():
        return next((checkpoint for checkpoint in (newest, previous) if checkpoint.exists()), None)
    if path in (newest, previous):
        return path
    raise InputError(f"--resume {path}: must be a run folder, or its {CHECKPOINT} or {PREVIOUS}")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Returns the content of a checkpoint.

    Raises:
        CheckpointError: If it is damaged or no checkpoint; the message names the previous one, if that is intact.
    """
    try:
        saved = serialization.load(path)
    except CheckpointError as error:
        hint = _hint(path.with_name(PREVIOUS)) if path.name == CHECKPOINT else ""
        raise CheckpointError(f"--resume {error}{hint}") from None
    complete = (
        {key: type(value) for key, value in saved.items()} == CONTENT
        and "metrics" in saved["state"]  # which has another name in version 0.1
        and "augment_on" in saved["environment"]
        and 0 < saved["max_lr"] < math.inf
    )
    if not complete:
        raise CheckpointError(f"--resume {path}: is not a checkpoint of this version of the package")
    return saved


def _hint(previous: Path) -> str:
    try:
        step = serialization.load(previous)["state"]["step"]
    except (CheckpointError, KeyError, TypeError, ValueError):
        return ""
    return f"; the previous one is intact: --resume {previous} continues after step {step:,}"


def restore(state: TrainingState, saved: dict[str, Any], epochs: int, steps_per_epoch: int) -> None:
    """Loads a checkpoint into the state of a run of ``epochs * steps_per_epoch`` steps.

    Raises:
        CheckpointError: If it does not fit the settings, or contradicts itself.
    """
    try:
        _check_layout(saved["state"], state)
        state.load_state_dict(saved["state"])
        consistent = (
            state.step == len(state.history) * steps_per_epoch + state.metrics.steps
            and 0 <= state.metrics.steps <= steps_per_epoch
            and 0 <= state.step <= epochs * steps_per_epoch
        )
    except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"--resume: the checkpoint does not fit the run ({type(error).__name__})") from None
    if not consistent:
        raise CheckpointError("--resume: the checkpoint contradicts itself about the number of steps")


def _check_layout(saved: dict[str, Any], state: TrainingState) -> None:
    """Raises an error for other names, types or shapes: PyTorch takes any attribute of a scheduler, and any moments."""
    expected = state.state_dict()
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    moments = [{"step": torch.zeros(()), "exp_avg": p, "exp_avg_sq": p} for p in parameters]
    expected["optimizer"] |= {"state": dict(enumerate(moments)) if saved["optimizer"]["state"] else {}}
    if not (saved["scaler"] and expected["scaler"]):  # begun in another precision
        expected["scaler"] = saved["scaler"]
    for name in ("model", "optimizer", "scheduler", "scaler", "step", "metrics"):
        if _layout(saved[name]) != _layout(expected[name]):
            raise ValueError(name)
    for metrics in saved["history"]:
        check_epoch(metrics, "history")
    logits = saved["eval_logits"]
    if saved["history"] and not (isinstance(logits, Tensor) and logits.is_floating_point()):
        raise ValueError("eval_logits")


def _layout(value: Any) -> Any:
    """Returns names, types and shapes of a nested value; devices differ in the precision of some tensors."""
    if isinstance(value, Tensor):
        return value.shape, value.is_floating_point()
    if isinstance(value, dict):
        return {name: _layout(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_layout(item) for item in value]
    return type(value)


def changed_settings(config: TrainConfig, saved: dict[str, Any] | None, given: Mapping[str, Any]) -> list[str]:
    """Returns the settings that differ from those of the run, in the flags given now or in its config.json."""
    fixed = {name: value for name, value in dict(config).items() if name not in RESUME_OVERRIDES}
    changed = [
        f"{flag(name)} {given[name]} (the run has {value})"
        for name, value in fixed.items()
        if given.get(name, value) != value
    ]
    begun = dict(TrainConfig.from_json(saved["config"])) if saved else fixed
    return changed + [
        f"{flag(name)} {value} in config.json (the checkpoint has {begun[name]})"
        for name, value in fixed.items()
        if begun[name] != value
    ]


def override_settings(config: C, given: Mapping[str, Any]) -> C:
    """Returns the settings of a run with those of `RESUME_OVERRIDES` that are given now.

    What the run recorded of its machine is not needed on this one: a device that is not here becomes ``auto``, and a
    data folder that is not here, or that the environment variable names now, the default.
    """
    changes = {name: given[name] for name in RESUME_OVERRIDES if name in given}
    if "device" not in given:
        try:
            resolve_runtime(config.device)
        except InputError:
            changes["device"] = "auto"
    if "data_dir" not in given and ("S10_DATA_DIR" in os.environ or not config.data_dir.is_dir()):
        changes["data_dir"] = TrainConfig().data_dir
    return config.replace(**changes)


def warn_of_changed_environment(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Warns if a run is resumed in another environment than it was begun in."""
    before, now = _flatten(before), _flatten(now)
    changed = [
        f"{name} {printable(str(before.get(name)), 200)} -> {now[name]}"
        for name in now
        if before.get(name) != now[name]
    ]
    if changed:
        logger.warning(
            "the environment has changed since this run was begun: %s. The run continues, but its result will not be "
            "bit-identical to that of an uninterrupted run.",
            ", ".join(changed),
        )


def _flatten(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for key, branch in tree.items()
        for name, value in (branch.items() if isinstance(branch, dict) else [(key, branch)])
    }
