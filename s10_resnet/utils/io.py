"""Atomic file writes, folder locks, JSON and CSV files, run folders."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from s10_resnet.errors import InputError

LOCK_FILE = ".lock"
MAX_FILE_SIZE = 10**9  # bytes; a training checkpoint of this network has about 100 MB
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF)


def atomic_write(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Writes a file atomically: a reader finds the old content or the new one, also after a crash.

    The old content is kept in ``previous``, if given; ``path`` exists at every moment.
    """
    temporary = _temporary_path(path)
    try:
        with temporary.open("xb") as file:  # a new file, through no link
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            link_or_copy(path, previous)
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a file a second name atomically: a hard link, or a copy on a file system without links.

    A link keeps the content when `atomic_write` replaces ``source``.
    """
    temporary = _temporary_path(target)
    try:
        os.link(source, temporary)
    except OSError:
        atomic_write(target, source.read_bytes())
    else:
        temporary.replace(target)
        _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Locks a folder for this process, and removes what a killed process left half written in it.

    The kernel releases the lock when the process ends, however it ends; forked children do not hold it. On a file
    system without locks this does nothing.

    Raises:
        InputError: If another process holds the lock.
    """
    # No soft lock in place of a missing flock: that one would outlive a killed process.
    lock = FileLock(folder / LOCK_FILE, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(f"{folder}: must be a run that no other process is working on") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        if lock.is_locked:
            for leftover in filter(Path.is_file, folder.glob(".*.tmp")):
                leftover.unlink()
        yield
    finally:
        # Removed while it is held: a process that has just opened it notices that the file is gone.
        with suppress(OSError):  # Windows removes no open file
            (folder / LOCK_FILE).unlink()
        lock.release()


def create_run_dir(output_dir: Path, name: str, prefix: str) -> Path:
    """Creates the folder of one run in ``output_dir``, called ``name`` or, if that is empty, ``prefix`` and the time.

    Raises:
        InputError: If the named folder exists, or none can be made.
    """
    stamp = f"{prefix}-{datetime.now():%Y%m%d-%H%M%S}"
    candidates = [name] if name else (stamp if i == 1 else f"{stamp}-{i}" for i in count(1))
    for candidate in candidates:
        try:
            (output_dir / candidate).mkdir(parents=True)
            return output_dir / candidate
        except FileExistsError:
            if not output_dir.is_dir():
                raise InputError(f"--output-dir {output_dir}: must be a folder, and a file has that name") from None
        except OSError as error:
            reason = f"must be a folder that can be written to ({error.strerror})"
            raise InputError(f"--output-dir {output_dir}: {reason}") from None
    raise InputError(f"--name {name}: must be a new name; {output_dir / name} exists and is not overwritten")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes indented JSON. NaN and infinities, which JSON does not have, raise a `ValueError`."""
    atomic_write(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a CSV file with a header line. All rows have the same keys."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, text.getvalue().encode())


def read_file(path: Path) -> bytes:
    """Reads a regular file of at most `MAX_FILE_SIZE` bytes.

    Raises:
        InputError: For anything else. Pipes and devices are not opened, which could wait for ever.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path}: must be a file, not a pipe or a device")
        if status.st_size > MAX_FILE_SIZE:
            raise InputError(f"{path}: has {status.st_size / 1e9:.1f} GB, more than any file of this package")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: If the file is missing or is not JSON.
    """
    content = read_file(path)
    try:
        return json.loads(content.decode(), parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        raise InputError(f"{path}: is not JSON") from None


def read_csv(path: Path) -> list[dict[str, float]]:
    """Reads a CSV file of `write_csv`.

    Raises:
        InputError: If the file is missing, or is not a header line and rows of as many numbers.
    """
    content = read_file(path)
    try:
        head, *rows = csv.reader(io.StringIO(content.decode(), newline=""), strict=True)
        return [dict(zip(head, map(float, row), strict=True)) for row in rows]
    except (ValueError, csv.Error):
        raise InputError(f"{path}: is not a CSV file of numbers under a header line") from None


def _temporary_path(path: Path) -> Path:
    """A new hidden name beside a file; `exclusive_lock` removes what stays of them."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def _sync_folder(folder: Path) -> None:
    """Flushes a folder to disk, so that a new name in it is as durable as the content."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows, which opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot: the file itself is whole
            raise
    finally:
        os.close(descriptor)


def _reject_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
