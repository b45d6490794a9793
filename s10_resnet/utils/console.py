"""Output on the terminal: log messages, progress bars and tables."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from tqdm import tqdm

logger = logging.getLogger("s10_resnet")

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


class ConsoleHandler(logging.Handler):
    """Writes INFO to stdout as plain lines, WARNING and above to stderr after their level, both above tqdm's bars.

    The streams are looked up when a record is written: whoever redirects `sys.stdout` later gets what is logged later.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record, and flushes the stream."""
        stream, level = sys.stdout, ""
        if record.levelno >= logging.WARNING:
            stream, level = sys.stderr, f"{record.levelname.lower()}: "
        with tqdm.external_write_mode(file=stream):
            write_text(stream, f"{level}{self.format(record)}\n")


def open_closed_streams() -> None:
    """Opens `os.devnull` in place of standard streams that a shell has closed.

    Otherwise the next files that are opened, such as a checkpoint, would get their numbers, and with that what C
    libraries write to stderr. `sys.stderr` would be None, which libraries such as tqdm do not expect.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 - stays open


def write_text(stream: TextIO | None, text: str) -> None:
    """Writes to a text stream and flushes it.

    Characters that are not printable, such as those that control a terminal, and characters that the stream cannot
    encode are written as backslash escapes; a newline stays. Nothing is written to a stream that is closed, or None as
    `sys.stderr` is after ``2>&-``.
    """
    if stream is None or stream.closed:
        return
    text = escape_controls(text)
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def escape_controls(text: str) -> str:
    """Returns a text whose characters are printable, or newlines: others are backslash escapes."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


@contextmanager
def warn_on_error(what: str) -> Iterator[None]:
    """Logs an error in this block as a warning, so that what is not essential ends no training.

    An error of the disk is raised: what is essential could not be written either.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        logger.warning(f"{what} ({reason[:200]})")


def progress_bar(items: Iterable[Any] | None = None, *, leave: bool = False, **options: Any) -> tqdm:
    """Returns a `tqdm` bar with its options, such as ``total`` and ``desc``; without a terminal nothing is drawn."""
    shown = sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
    with suppress(OSError):
        shown = shown and os.get_terminal_size(sys.stderr.fileno()).lines > 0  # where it is 0, tqdm draws nothing
    return tqdm(items, disable=not shown, leave=leave, dynamic_ncols=True, **options)


def format_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Formats the lines of a table: the first column aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    layout = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])])
    return [layout.format(*row) for row in rows]


logger.addHandler(ConsoleHandler())
logger.propagate = False  # a root handler, such as absl's, would print every line again
if logger.level == logging.NOTSET:
    logger.setLevel(logging.INFO)
