"""Trained networks, loaded from the weights files of training runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError
from torch import Tensor, nn

from s10_resnet.config import REMOVED, RENAMED, RENAMED_VALUES
from s10_resnet.errors import InputError
from s10_resnet.models import resnet
from s10_resnet.utils import serialization
from s10_resnet.utils.environment import require_optional
from s10_resnet.utils.runtime import Runtime, resolve_runtime
from s10_resnet.utils.serialization import CheckpointError

MAX_ITEMS = 1000  # of a list, or of the settings

# Of a bounded size: texts, numbers within the ranges of their types in C, and flat lists of them.
Name = Annotated[str, Field(min_length=1, max_length=100)]
Text = Annotated[InstanceOf[str], Field(max_length=4096)]  # pydantic's str is valid Unicode, which a path need not be
Scalar = bool | Annotated[int, Field(ge=-(2**63), lt=2**63)] | float | Text | None
Setting = Scalar | Annotated[list[Scalar], Field(max_length=MAX_ITEMS)]
STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


class TrainedConfig(BaseModel):
    """The settings of a run: those that are used here, and any others."""

    model_config = STRICT | ConfigDict(extra="allow")
    __pydantic_extra__: dict[Name, Setting]

    logit_scale: float = Field(gt=0, le=torch.finfo(torch.float32).max)
    val_size: int = Field(0, ge=0, le=10**6)


class WeightsContent(BaseModel):
    """The content of a weights file."""

    model_config = STRICT

    model: dict[str, Tensor]
    classes: list[Annotated[str, Field(pattern=r"^[ -~]{1,100}$")]] = Field(min_length=1, max_length=MAX_ITEMS)
    dataset: Literal["cifar10", "synthetic"]
    epoch: int = Field(ge=0, lt=2**31)
    eval_accuracy: float = Field(ge=0, le=1)
    eval_split: Literal["test", "val"]
    config: TrainedConfig


class LoadedModel(nn.Module):
    """A trained network in evaluation mode, from uint8 images ``[B, 32, 32, 3]`` to float32 logits ``[B, C]``.

    Attributes:
        network: A network of `s10_resnet.models.resnet.build_model`; normalization is its first layer.
        classes: The C class names.
        dataset: The data set it was trained on, ``cifar10`` or ``synthetic``.
        epoch: The number of epochs trained.
        eval_accuracy: The accuracy after that epoch, a fraction of 1.
        eval_split: The images it was measured on: ``test``, or ``val`` if images were held out.
        config: The settings of the run, by their present names.
    """

    def __init__(self, network: nn.Module, runtime: Runtime, content: WeightsContent) -> None:
        super().__init__()
        self.network, self._runtime = network, runtime
        self.classes = tuple(content.classes)
        self.dataset, self.epoch = content.dataset, content.epoch
        self.eval_accuracy, self.eval_split = content.eval_accuracy, content.eval_split
        self.config = _upgrade(content.config.model_dump(exclude_unset=True))
        self.to(runtime.device).eval()

    @property
    def runtime(self) -> Runtime:
        """Precision and present device."""
        return replace(self._runtime, device=next(self.parameters()).device)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits, float32 ``[B, C]``, of uint8 images ``[B, 32, 32, 3]``.

        Raises:
            InputError: For images of another type: those from 0 to 1 would all be black.
        """
        if images.dtype != torch.uint8:
            raise InputError(f"images: must be uint8 pixels from 0 to 255, not {images.dtype}")
        with self.runtime.autocast():
            return self.network(images).float()


def load_model(path: str | Path, device: str = "auto", precision: str = "fp32") -> LoadedModel:
    """Loads trained weights. No code in the file is run, and no setting of the process is changed.

    Args:
        path: A run folder (its ``last.pt``), or a file: ``last.pt``, ``best.pt``, or an export as safetensors.
        device: ``auto`` (CUDA, then Apple's MPS, then the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: Of the forward pass: ``auto`` (see `s10_resnet.utils.runtime.best_precision`), ``fp32``, ``bf16`` or
            ``fp16``.

    Raises:
        CheckpointError: For a file that is missing or damaged, or holds anything but finite weights of this network.
        InputError: For a device that is not available, or a precision that it does not support.
    """
    file = weights_file(path)
    content = _read_safetensors(file) if file.suffix == ".safetensors" else serialization.load(file)
    if "state" in content:
        raise CheckpointError(f"{file}: is a training checkpoint; the weights are in last.pt beside it")
    if "eval_accuracy" not in content:  # of a previous version
        split = "val" if "val_accuracy" in content else "test"
        content |= {"eval_split": split, "eval_accuracy": content.get(f"{split}_accuracy")}
    try:
        checked = WeightsContent.model_validate(content)
    except ValidationError:
        raise CheckpointError(f"{file}: is not a weights file of this package, such as a run's last.pt") from None
    runtime = resolve_runtime(device, precision)
    with torch.random.fork_rng(devices=[]):  # the initial weights are random
        # Mean and standard deviation are among the weights.
        network = resnet.build_model(
            (0.0,) * 3, (1.0,) * 3, num_classes=len(checked.classes), logit_scale=checked.config.logit_scale
        )
    if _layouts(checked.model) != _layouts(network.state_dict()):
        raise CheckpointError(f"{file}: holds the weights of another network than this package's ResNet-9")
    if not all(tensor.isfinite().all() for tensor in checked.model.values()):
        raise CheckpointError(f"{file}: holds weights that are not finite numbers")
    network.load_state_dict(checked.model)
    return LoadedModel(network, runtime, checked)


def weights_file(path: str | Path) -> Path:
    """Returns the weights file that a path means: of a run folder its ``last.pt``.

    Raises:
        CheckpointError: For a folder without one.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    if not (path / "last.pt").exists():
        raise CheckpointError(f"{path}: must be a run folder with a last.pt, or a file of weights")
    return path / "last.pt"


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Reads an exported file: tensors, and everything else as JSON in the header."""
    library = require_optional("safetensors.torch", "export", str(path))
    content = serialization.read_checkpoint_file(path)
    try:
        weights = library.load(content)  # checks the header
        text = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
        text = {key: value for key, value in text.items() if key not in ("format", "sha256")}  # the digest of old files
        return {key: json.loads(value) for key, value in text.items()} | {"model": weights}
    except MemoryError:
        raise
    except Exception:  # a forged file can fail anywhere in the parsers
        raise CheckpointError(f"{path}: is damaged, or not a safetensors file of this package") from None


def _upgrade(config: dict[str, Any]) -> dict[str, Any]:
    """Returns settings by their present names, without those that were removed."""
    upgraded = {}
    for key, value in config.items():
        if key not in REMOVED:
            name = RENAMED.get(key, key)
            values = RENAMED_VALUES.get(name, {})
            upgraded[name] = values.get(value, value) if isinstance(value, bool | str) else value
    return upgraded


def _layouts(weights: dict[str, Tensor]) -> dict[str, tuple]:
    """Returns what must agree for one network's weights to be another's."""
    return {name: (type(w), w.shape, w.dtype, w.layout, w.device) for name, w in weights.items()}
