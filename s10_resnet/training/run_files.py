"""Reads the text files of a run folder: ``config.json``, ``history.csv`` and ``summary.json``.

Files of the previous version are read, too, and returned under the names of this one. A run folder may come from
somebody else, so that everything is validated before use; weights are never opened.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from s10_resnet.config import TrainConfig, printable
from s10_resnet.errors import InputError
from s10_resnet.utils.io import read_csv, read_json

T = TypeVar("T")

CONFIG, HISTORY, SUMMARY = "config.json", "history.csv", "summary.json"
# The previous version spelt the evaluation split into its keys: test_loss, final_val_accuracy, val_images.
_PREVIOUS_KEY = re.compile(r"((?:final|best)_)?(test|val)_(loss|accuracy|seconds|images)")

Accuracy = Annotated[float, Field(ge=0, le=1)]
Loss = Annotated[float, Field(ge=0, le=1e30)]  # a larger one could not be drawn
LearningRate = Annotated[float, Field(ge=0, le=1000)]
Seconds = Annotated[float, Field(ge=0, le=1e15)]
Positive = Annotated[float, Field(gt=0, le=1e15)]
Count = Annotated[int, Field(ge=1, le=10**15)]


@dataclass(frozen=True)
class EpochMetrics:
    """Metrics of one epoch, a row of ``history.csv``. Losses are means over images, accuracies fractions of 1."""

    # How `check_epoch` validates: not strictly, because all cells of a CSV file are floats.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False)

    epoch: Count  # from 1
    train_loss: Loss  # mean over the epoch's steps, on augmented images, while the weights change
    train_accuracy: Accuracy  # likewise
    eval_loss: Loss  # on the evaluation images, not augmented, at the end of the epoch
    eval_accuracy: Accuracy  # likewise
    lr: LearningRate  # of the epoch's last step
    train_seconds: Positive  # of the training steps
    eval_seconds: Seconds
    images_per_second: Positive  # training images divided by train_seconds


class _Summary(BaseModel):
    """The content of ``summary.json``."""

    model_config = ConfigDict(allow_inf_nan=False, strict=True)

    status: Literal["completed", "interrupted", "failed"]
    dataset: Literal["cifar10", "synthetic"]
    eval_split: Literal["test", "val"]
    epochs: Count
    parameters: Count
    seed: Annotated[int, Field(ge=0)]
    max_lr: LearningRate
    final_train_accuracy: Accuracy
    final_eval_accuracy: Accuracy
    best_train_accuracy: Accuracy
    best_eval_accuracy: Accuracy
    best_epoch: Count
    final_train_loss: Loss
    final_eval_loss: Loss
    train_images: Count
    eval_images: Count
    train_seconds: Positive
    eval_seconds: Seconds
    images_per_second: Positive
    workers: Annotated[int, Field(ge=0)]
    device: str
    precision: str
    world_size: Count = Field(1, validation_alias=AliasChoices("world_size", "processes"))
    versions: dict[str, str]
    git_commit: str | None
    hardware: dict[str, str | int | None]


def read_config(run_dir: Path) -> dict[str, Any]:
    """Returns the settings of a run, complete: what its version did not know has its default.

    Raises:
        InputError: For a file that is missing or damaged, and for settings that no longer exist and were in use.
    """
    path = run_dir / CONFIG
    content = read_json(path)
    try:
        return TrainConfig.from_json(content).to_json()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_history(run_dir: Path) -> list[dict[str, Any]]:
    """Returns the epochs of a run, each with the fields of `EpochMetrics`.

    Accuracies are from 0 to 1, losses are finite, and epochs are numbered 1, 2, 3 and so on. There may be none.

    Raises:
        InputError: For a file that is missing or damaged.
    """
    path = run_dir / HISTORY
    epochs = [check_epoch(row, f"{path}: row {n}, ") for n, row in enumerate(read_csv(path), 1)]
    if [row["epoch"] for row in epochs] != list(range(1, len(epochs) + 1)):
        raise InputError(f"{path}: the epochs must be numbered 1, 2, 3 and so on")
    return epochs


def check_epoch(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns the metrics of an epoch, validated, or raises an `InputError` that begins with ``where``."""
    return asdict(_validate(_EPOCH, row, where))


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Returns the summary of a run; keys that are not known are left out.

    Raises:
        InputError: For a file that is missing or damaged.
    """
    path = run_dir / SUMMARY
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a JSON object")
    return _validate(_SUMMARY, content, f"{path}: ").model_dump()


def _upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """Returns values under the keys of this version, with the split that keys of the previous one named."""
    values = {}
    for key, value in content.items():
        if match := _PREVIOUS_KEY.fullmatch(key):
            key = f"{match[1] or ''}eval_{match[3]}"
            values["eval_split"] = match[2]
        values[key] = value
    return values


# Built once: that takes longer than to validate a row.
_EPOCH, _SUMMARY = TypeAdapter(EpochMetrics), TypeAdapter(_Summary)


def _validate(adapter: TypeAdapter[T], values: dict[str, Any], where: str) -> T:
    try:
        return adapter.validate_python(_upgrade(values))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = printable(".".join(map(str, first["loc"])))
        raise InputError(f"{where}{name}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
