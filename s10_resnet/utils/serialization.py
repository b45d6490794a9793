"""Weights and training states on disk: written whole, sealed with a digest, read without running anything."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch

from s10_resnet.errors import InputError
from s10_resnet.utils.io import write_whole

_LABEL = b"sha256:"
_SEAL_SIZE = len(_LABEL) + 64


class CheckpointError(InputError):
    """A file is no checkpoint of this package, or no longer the one that was written."""


def save(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
    """Writes tensors and plain values; `load` reads them back, and so does a bare `torch.load`.

    The file ends in the SHA-256 of all before it: a zip archive, which `torch.save` writes, may carry a comment.

    Args:
        path: The file.
        state: What to write.
        previous: Where to keep the file that was there before.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getbuffer()[:-2]  # the last two bytes are the length of the comment, 0 until now
    length = _SEAL_SIZE.to_bytes(2, "little")
    write_whole(path, b"".join((body, length, _seal(body, length))), previous)


def load(path: Path) -> dict[str, Any]:
    """Reads a file of `save` onto the CPU. The bytes whose digest was checked are the bytes that are parsed.

    Raises:
        CheckpointError: For a file that is missing, altered by so much as a bit, or holds more than tensors and plain
            values; no code in it is run.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    body = memoryview(content)[:-_SEAL_SIZE]
    if content[-_SEAL_SIZE:] != _seal(body):
        raise CheckpointError(f"{path}: is damaged, or no checkpoint of this package (its SHA-256 does not match)")
    try:
        if not content.startswith(b"PK"):  # torch reads other formats than zip archives, too, which are not ours
            raise TypeError
        with warnings.catch_warnings(action="ignore"):  # a refusal is said in one line, by us
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a forged file may trip the reader over anything
        raise CheckpointError(
            f"{path}: holds something other than tensors and plain values, and was not opened ({type(error).__name__})"
        ) from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: is no checkpoint of this package")
    return state


def _seal(*parts: bytes | memoryview) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return _LABEL + digest.hexdigest().encode()
