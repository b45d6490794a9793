"""Checkpoint files: written atomically, with a digest at the end, read without running code from them."""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from s10_resnet.errors import InputError
from s10_resnet.utils.io import atomic_write, read_file

MAX_VALUES = 200_000  # a history of 10,000 epochs has half of them
DIGEST_SIZE = 71  # bytes of "sha256:" and 64 hexadecimal digits


class CheckpointError(InputError):
    """A file is not a checkpoint of this package, or has been altered."""


def save(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
    """Writes tensors and plain values, which `load` and `torch.load` read back; keeps the old file in ``previous``.

    The file ends with the SHA-256 of everything before it, as the comment of the zip archive that `torch.save` writes.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(-2, io.SEEK_END)  # the last two bytes are the length of the comment, 0 until now
    buffer.write(DIGEST_SIZE.to_bytes(2, "little"))
    buffer.write(_digest(buffer.getbuffer()))
    atomic_write(path, buffer.getvalue(), previous)


def load(path: Path) -> dict[str, Any]:
    """Reads a file of `save` onto the CPU. The bytes whose digest was checked are the bytes that are parsed.

    Raises:
        CheckpointError: For a file that is missing, altered by so much as a bit, or holds more than tensors and at most
            `MAX_VALUES` plain values; no code in it is run.
    """
    content = read_checkpoint_file(path)
    if content[-DIGEST_SIZE:] != _digest(memoryview(content)[:-DIGEST_SIZE]):
        raise CheckpointError(f"{path}: is damaged, or no checkpoint of this package (its SHA-256 does not match)")
    try:
        if not content.startswith(b"PK"):  # torch reads other formats than zip archives, too, which are not ours
            raise TypeError
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = archive.infolist()
        stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
        # Compressed or overlapping records could need any amount of memory: `torch.save` writes none.
        if not stored or sum(record.file_size for record in records) > len(content):
            raise ValueError
        with warnings.catch_warnings(action="ignore"):  # the error below is enough
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a forged file may trip the reader over anything
        raise CheckpointError(
            f"{path}: holds something other than tensors and plain values, and was not opened ({type(error).__name__})"
        ) from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: is no checkpoint of this package")
    if _has_more_values(state, MAX_VALUES):
        raise CheckpointError(
            f"{path}: holds more than {MAX_VALUES:,} values, which no checkpoint of this package does"
        )
    return state


def read_checkpoint_file(path: Path) -> bytes:
    """Returns the content of a file, or raises a `CheckpointError` where `read_file` raises an `InputError`."""
    try:
        return read_file(path)
    except InputError as error:
        raise CheckpointError(str(error)) from None


def _has_more_values(state: Any, limit: int) -> bool:
    """Whether nested dicts and lists hold more values than a limit; one that is there twice counts twice.

    A few lists, each of which holds the next one twice, would keep whoever walks through them busy for ever.
    """
    count, stack = 0, [state]
    while stack and count <= limit:
        value = stack.pop()
        if isinstance(value, dict | list | tuple | set | frozenset):
            count += len(value)
            if count <= limit:
                stack += value.values() if isinstance(value, dict) else value
    return count > limit


def _digest(content: bytes | memoryview) -> bytes:
    return b"sha256:" + hashlib.sha256(content).hexdigest().encode()
