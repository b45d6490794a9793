"""Graceful shutdown on SIGINT (Ctrl-C) and SIGTERM: at once, or after the step that is running."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_received: list[int] = []  # since `graceful_shutdown` began
_depth = 0  # of `defer_signals` blocks
_active = False


class ShutdownRequested(KeyboardInterrupt):
    """Raised when SIGINT or SIGTERM asks this process to end.

    Attributes:
        signum: The signal; the exit code is 128 more.
        urgent: Whether it was a Ctrl-C after an earlier signal: nothing is saved any more.
    """

    def __init__(self, signum: int, urgent: bool = False) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum, self.urgent = signum, urgent


@contextmanager
def graceful_shutdown() -> Iterator[None]:
    """Within this block SIGINT and SIGTERM raise `ShutdownRequested`, the first as soon as no step is half done.

    A repeated SIGTERM changes nothing, since ``timeout`` and supervisors send it twice. A signal that this process was
    started to ignore (``nohup``, jobs in the background) stays ignored. Outside the main thread this does nothing.
    """
    global _active
    if threading.current_thread() is not threading.main_thread() or _active:
        yield  # no signals here, or handled already
        return
    before = {signum: handler for signum in SIGNALS if (handler := signal.getsignal(signum)) is not signal.SIG_IGN}
    report = sys.unraisablehook

    def report_others(unraisable: sys.UnraisableHookArgs) -> None:
        # Python drops what is raised in a finaliser, and reports it at length: it is raised again after the next step.
        if not isinstance(unraisable.exc_value, ShutdownRequested):
            report(unraisable)

    try:
        _active = True
        sys.unraisablehook = report_others
        for signum in before:
            signal.signal(signum, _handle_signal)
        yield
    finally:
        for signum, handler in before.items():
            if signal.getsignal(signum) is _handle_signal:
                signal.signal(signum, handler)
        _received.clear()
        sys.unraisablehook = report
        _active = False


@contextmanager
def defer_signals() -> Iterator[None]:
    """Defers `ShutdownRequested` to the end of this block, unless it is urgent.

    An error in the block takes precedence: what the block changes is inconsistent then, and must not be saved.
    """
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
    if _depth == 0:
        raise_pending()


def raise_pending() -> None:
    """Raises `ShutdownRequested` for a deferred signal."""
    if _received:
        raise ShutdownRequested(_received[0])


@contextmanager
def block_signals() -> Iterator[None]:
    """Blocks both signals in processes started here: a signal to the process group is for their parent to handle."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """Ignores both signals, in a process that is about to end or that its parent ends."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def _handle_signal(signum: int, frame: FrameType | None) -> None:
    first = not _received
    _received.append(signum)
    urgent = signum == signal.SIGINT and not first
    if urgent or (first and _depth == 0):
        raise ShutdownRequested(signum, urgent)
    if first and signum == signal.SIGINT:
        # To the file descriptor: the step may be writing to sys.stderr. On a slow machine a step takes seconds.
        with suppress(OSError):
            os.write(2, b"\nstopping after this step; Ctrl-C again quits now\n")
