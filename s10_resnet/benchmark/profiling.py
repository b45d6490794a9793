"""Where the time of a steady epoch goes, by operation, and for how much of it the device has nothing to do."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from s10_resnet.benchmark import timing
from s10_resnet.benchmark.baseline_timer import MAX_LR
from s10_resnet.data import loader as batches
from s10_resnet.training import loop as engine
from s10_resnet.training import session
from s10_resnet.training.session import Session

ROWS = 30
NAME_WIDTH = 60


def epoch(run: Session) -> tuple[str, float | None]:
    """Trains two epochs and profiles the second with `torch.profiler`, which slows it down.

    Returns:
        A table of the operations that take longest, and the share of the epoch in which a CUDA device runs no kernel
        and copies nothing; None without one.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library would tell stderr about itself
    state, criterion = session.training_state(run, MAX_LR), session.criterion(run)
    on_cuda = run.runtime.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with batches.running(session.loader(run, 2)) as stream:
        timing.exhaust(engine.train_steps(state, islice(stream, run.steps_per_epoch), criterion))
        with profile(activities=activities) as profiled:
            seconds = timing.seconds(timing.exhaust, engine.train_steps(state, stream, criterion))
    order = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    table = profiled.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=NAME_WIDTH)
    if not on_cuda:
        return table, None
    spans = (event.time_range for event in profiled.events() if event.device_type == DeviceType.CUDA)
    return table, 1 - covered((span.start, span.end) for span in spans) / (1e6 * seconds)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """How much at least one of the spans covers, each from a start to an end."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
