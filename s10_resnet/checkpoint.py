"""Weights on disk: written whole, read without running anything."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from s10_resnet.files import write_whole


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes tensors and plain values; `load` reads them back."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(path, buffer.getvalue())


def load(path: Path) -> dict[str, Any]:
    """Reads a file of `save` onto the CPU, refusing anything but tensors and plain values."""
    return torch.load(path, map_location="cpu", weights_only=True)
