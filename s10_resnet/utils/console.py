"""Output on the terminal: log messages, progress bars and tables."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")

logger = logging.getLogger("s10_resnet")


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


def setup_logging() -> None:
    """Sends the package's log messages from INFO on to the console. A second call changes nothing."""
    if any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
        return
    logger.addHandler(ConsoleHandler())
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    logger.propagate = False  # a root handler, such as absl's, would print every line again


def write_text(stream: TextIO | None, text: str) -> None:
    """Writes to a text stream and flushes it.

    Characters that the stream cannot encode are written as backslash escapes. Nothing is written to a stream that is
    closed, or None as `sys.stderr` is after ``2>&-``.
    """
    if stream is None or stream.closed:
        return
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def shows_bars() -> bool:
    """Whether stderr is a terminal, on which progress bars can be drawn."""
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


def progress_bar(items: Iterable[T], total: int, desc: str, unit: str) -> Iterator[T]:
    """Iterates over items under a progress bar; without a terminal there is none."""
    return tqdm(items, total=total, desc=desc, unit=unit, disable=not shows_bars(), leave=False, dynamic_ncols=True)


def format_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Formats the lines of a table: the first column aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    layout = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])])
    return [layout.format(*row) for row in rows]


setup_logging()
