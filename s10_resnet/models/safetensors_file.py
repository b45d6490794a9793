"""Weights as safetensors, a format that holds tensors and text and can hold no code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s10_resnet.utils import extras
from s10_resnet.utils.io import write_whole
from s10_resnet.utils.serialization import CheckpointError

_SEAL = "sha256"  # the format has no checksum of its own, and a flipped bit in a weight would go unnoticed


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes the content of a run's ``last.pt``: ``model`` as tensors, everything else as JSON beside them."""
    library = extras.need("safetensors.torch", "export", "--format safetensors")
    tensors = {name: tensor.contiguous() for name, tensor in content["model"].items()}
    text = {"format": "pt"} | {key: json.dumps(value) for key, value in content.items() if key != "model"}
    write_whole(path, library.save(tensors, metadata={**text, _SEAL: _digest(tensors, text)}))


def read(path: Path) -> dict[str, Any]:
    """Reads a file of `write`. The bytes whose digest was checked are the bytes that are parsed.

    Raises:
        CheckpointError: For a file that is missing, altered, or was not made by `write`.
    """
    library = extras.need("safetensors.torch", "export", str(path))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        tensors = library.load(content)  # checks the header, which the library keeps to itself
        text = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        if text.pop(_SEAL) != _digest(tensors, text):
            raise ValueError
        return {key: json.loads(value) for key, value in text.items() if key != "format"} | {"model": tensors}
    except MemoryError:
        raise
    except Exception:  # a forged file may trip the reader over anything
        raise CheckpointError(f"{path}: is damaged, or no safetensors file of this package") from None


def _digest(tensors: dict[str, Tensor], text: dict[str, str]) -> str:
    """Of all that a file says, in whatever order it does: the library's is another every time."""
    digest = hashlib.sha256()
    shapes = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
    digest.update(json.dumps([text, shapes], sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
