"""How the benchmark measures time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch


def alternately(
    package: Callable[[], float], textbook: Callable[[], float], repeats: int
) -> tuple[list[float], list[float]]:
    """In turn, so that a machine whose speed changes is as slow for the one as for the other.

    Args:
        package: Gives the seconds of the package.
        textbook: Gives the seconds of the textbook script.
        repeats: Times that count; one before them is warm-up.

    Returns:
        The seconds of either.
    """
    pairs = [(package(), textbook()) for _ in range(repeats + 1)][1:]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def seconds(work: Callable[..., None], *arguments: object) -> float:
    """What a call takes."""
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def exhaust(steps: Iterable[object]) -> None:
    """Runs a generator to its end."""
    deque(steps, maxlen=0)


def wait(device: torch.device) -> None:
    """Waits until the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


@contextmanager
def one_thread() -> Iterator[None]:
    """One core for torch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
