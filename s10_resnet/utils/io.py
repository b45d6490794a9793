"""Files that are whole or not there, and folders that one process works in at a time."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s10_resnet.errors import InputError

try:
    import fcntl
except ImportError:  # Windows, where a folder can be neither locked nor synced
    fcntl = None

_locks: set[int] = set()  # descriptors


def write_whole(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Replaces a file in one step, so that a reader or a crash finds the old content or the new, never a part.

    Args:
        path: The file.
        content: All of it.
        previous: Where to keep the old content; at every moment ``path`` is whole.
    """
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes this the one process that works in a folder, and clears away what a killed one left half written.

    The kernel releases the lock when the process ends, however it does; processes forked from it do not hold it. On a
    file system that knows no locks there is none.

    Raises:
        InputError: If another process holds the lock.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    _locks.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: must be a run that no other process is working on") from None
        except OSError:
            pass
        else:
            for leftover in filter(Path.is_file, folder.glob(".*.tmp")):
                leftover.unlink()
        yield
    finally:
        _locks.discard(descriptor)
        os.close(descriptor)


def _keep(path: Path, previous: Path) -> None:
    """Gives a file a second name, so that the first never goes missing on the way."""
    temporary = _temporary(previous)
    temporary.unlink(missing_ok=True)  # a killed process may have left one
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        write_whole(previous, path.read_bytes())
    else:
        temporary.replace(previous)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _sync_folder(folder: Path) -> None:
    """Makes the new name as durable as the content: it is the folder's content."""
    if fcntl is None:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot: the file itself is whole
            raise
    finally:
        os.close(descriptor)


def _release_in_child() -> None:
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_release_in_child)
