"""Ctrl-C and SIGTERM: heard at once, obeyed where nothing is half done."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HEEDED = (signal.SIGINT, signal.SIGTERM)

_received: list[int] = []  # since `heeded` began
_depth = 0  # of `uninterrupted` blocks
_heeding = False


class Stopped(KeyboardInterrupt):
    """A signal asked for the end of the process.

    Attributes:
        signum: Its number; a process that ends by it exits with 128 more.
        urgent: It was Ctrl-C, and not the first signal: nothing is to be saved any more.
    """

    def __init__(self, signum: int, urgent: bool = False) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum, self.urgent = signum, urgent


@contextmanager
def heeded() -> Iterator[None]:
    """Within this block SIGINT and SIGTERM raise `Stopped`, the first of them as soon as no step is half done.

    A repeated SIGTERM changes nothing, since ``timeout`` and supervisors send it twice. A signal that this process was
    started to ignore (``nohup``, jobs in the background) stays ignored. Only the main thread can listen: elsewhere this
    does nothing.
    """
    global _heeding
    if threading.current_thread() is not threading.main_thread() or _heeding:
        yield  # nobody's signals, or heeded already
        return
    before = {signum: signal.getsignal(signum) for signum in HEEDED}
    before = {signum: handler for signum, handler in before.items() if handler is not signal.SIG_IGN}
    report = sys.unraisablehook

    def report_others(unraisable: sys.UnraisableHookArgs) -> None:
        # Python drops what is raised in a finaliser, and says so at length: the next step's end obeys the signal.
        if not isinstance(unraisable.exc_value, Stopped):
            report(unraisable)

    try:
        _heeding = True
        sys.unraisablehook = report_others
        for signum in before:
            signal.signal(signum, _receive)
        yield
    finally:
        for signum, handler in before.items():
            if signal.getsignal(signum) is _receive:
                signal.signal(signum, handler)
        _received.clear()
        sys.unraisablehook = report
        _heeding = False


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Puts `Stopped` off to the end of this block, but for an urgent one.

    An error in the block goes before it: what the block changes is half done then, and not to be saved.
    """
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
    if _depth == 0:
        obey()


def obey() -> None:
    """Raises `Stopped` for a signal that was put off."""
    if _received:
        raise Stopped(_received[0])


@contextmanager
def withheld() -> Iterator[None]:
    """Processes started in this block never get the signals, which reach a whole process group: their parent does."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore() -> None:
    """For a process that is about to end anyway, or whose parent heeds the signals and ends it."""
    for signum in HEEDED:
        signal.signal(signum, signal.SIG_IGN)


def _receive(signum: int, frame: FrameType | None) -> None:
    first = not _received
    _received.append(signum)
    urgent = signum == signal.SIGINT and not first
    if urgent or (first and _depth == 0):
        raise Stopped(signum, urgent)
