"""Trained networks, from the weights that a run leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from s10_resnet.models import resnet as model
from s10_resnet.models import safetensors_file as sharing
from s10_resnet.utils import runtime
from s10_resnet.utils import serialization as checkpoint
from s10_resnet.utils.runtime import Runtime
from s10_resnet.utils.serialization import CheckpointError


@dataclass(frozen=True)
class Trained:
    """A network that is ready to use.

    Attributes:
        network: From uint8 images ``[B, 32, 32, 3]`` to logits ``[B, C]``; normalising is its first layer.
        classes: The C names.
        runtime: The device that it lies on, and the number format to run it in.
        dataset: What it was trained on, ``cifar10`` or ``synthetic``.
        epoch: After which epoch of its training.
        accuracy: What it was measured at then, a fraction of 1.
        split: On which images: ``test``, or ``val`` if they were held out.
        config: The settings of its training, as in the run's ``config.json``.
    """

    network: nn.Module
    classes: tuple[str, ...]
    runtime: Runtime
    dataset: str
    epoch: int
    accuracy: float
    split: str
    config: dict[str, Any]


def load_model(path: Path | str, device: str = "auto", precision: str = "fp32") -> Trained:
    """Loads a run's ``best.pt`` or ``last.pt``, or what ``scripts/export.py --format safetensors`` made of them.

    Nothing in the file is executed.

    Args:
        path: The file.
        device: ``auto`` (CUDA, then Apple's MPS, then the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``auto`` (see `s10_resnet.utils.runtime.best_precision`), ``fp32``, ``bf16`` or ``fp16``.

    Raises:
        CheckpointError: For a file that is missing, damaged, or holds something else than weights of this network.
        InputError: For a device that is not there, or a format that it cannot compute in.
    """
    path = Path(path)
    content = sharing.read(path) if path.suffix == ".safetensors" else checkpoint.load(path)
    if "state" in content:
        raise CheckpointError(f"{path}: is the state of a training to go on from; the weights are in last.pt beside it")
    weights, about = _parts(path, content)
    # What pixels are normalised by is among the weights.
    network = model.build_network(
        (0.0,) * 3, (1.0,) * 3, classes=len(about["classes"]), logit_scale=about["config"]["logit_scale"]
    )
    try:
        network.load_state_dict(weights)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        raise CheckpointError(f"{path}: holds the weights of another network than this package's ResNet-9") from None
    chosen = runtime.start(device, precision)
    return Trained(network.to(chosen.device).eval(), runtime=chosen, **about)


def _parts(path: Path, content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights, and all about them that `Trained` holds."""
    split = "val" if "val_accuracy" in content else "test"
    try:
        about = {name: content[name] for name in ("dataset", "epoch", "config")}
        about |= {"accuracy": content[f"{split}_accuracy"], "split": split, "classes": tuple(content["classes"])}
        scale = about["config"]["logit_scale"]
        fits = (
            isinstance(content["model"], dict)
            and about["dataset"] in ("cifar10", "synthetic")
            and 0 < len(about["classes"]) <= 1000
            and all(isinstance(name, str) and name.isprintable() for name in about["classes"])
            and type(about["epoch"]) is int
            and type(about["accuracy"]) is float
            and isinstance(scale, int | float)
            and math.isfinite(scale)
        )
    except (KeyError, TypeError):
        fits = False
    if not fits:
        raise CheckpointError(f"{path}: is not the weights of a run of this package, such as its last.pt")
    return content["model"], about
