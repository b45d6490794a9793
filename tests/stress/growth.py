"""Whether time grows linearly with the epochs, and memory, open files, processes and threads do not grow at all."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.stress.lab import Lab, Row, Script

EPOCHS = (8, 16, 24)
MAX_OFF_LINE = 0.1  # of a time, from the straight line through the times
MAX_EPOCHS_GROWTH = 32 * 2**20  # bytes, from the second epoch to the last
MAX_RUN_GROWTH = 10 * 2**20  # bytes per run: matplotlib and the allocator keep some


@dataclass(frozen=True)
class ResourceUsage:
    """Resources of this process.

    Attributes:
        memory: Resident bytes.
        open_files: Files, sockets and pipes.
        processes: Children.
        threads: Of this process.
    """

    memory: int
    open_files: int
    processes: int
    threads: int


def resource_usage() -> ResourceUsage:
    """Returns what this process uses now (Linux)."""
    process = Path("/proc/self")
    tasks = list((process / "task").iterdir())
    return ResourceUsage(
        memory=int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        open_files=len(list((process / "fd").iterdir())),
        processes=sum(len((task / "children").read_text().split()) for task in tasks),
        threads=len(tasks),
    )


def fit_line(epochs: list[int], seconds: list[float]) -> dict[str, Any]:
    """Fits a straight line by least squares.

    Returns:
        ``epochs`` and ``seconds`` as given, ``startup_seconds``, ``epoch_seconds``, and ``max_residual``, the largest
        distance of a time from the line as a fraction of the time.
    """
    slope, intercept = np.polyfit(epochs, seconds, 1)
    residuals = np.abs(intercept + slope * np.array(epochs) - seconds) / seconds
    return {
        "epochs": epochs,
        "seconds": seconds,
        "startup_seconds": float(intercept),
        "epoch_seconds": float(slope),
        "max_residual": float(residuals.max()),
    }


def measure(folder: Path, epochs: list[int], runs: int) -> dict[str, Any]:
    """Trains for different numbers of epochs, for the largest once more without a run folder, then many short runs.

    Returns:
        ``line``: see `fit_line`. ``over_epochs`` and ``over_runs``: the `ResourceUsage` after every epoch or run.
    """
    from s10_resnet import TrainConfig, train
    from s10_resnet.training.setup import create_setup
    from s10_resnet.training.state import TrainingState
    from s10_resnet.training.trainer import Trainer, TrainingLogger

    class UsageLogger(TrainingLogger):
        def __init__(self) -> None:
            self.usage: list[dict[str, int]] = []

        def on_epoch_end(self, state: TrainingState) -> None:
            self.usage.append(asdict(resource_usage()))

    config = TrainConfig(
        dataset="synthetic", max_train_samples=200, batch_size=50, device="cpu", workers=0, output_dir=folder
    )

    def cpu_seconds(config: TrainConfig) -> float:
        start = time.process_time()  # neighbours on the machine do not count
        with contextlib.redirect_stdout(io.StringIO()):
            train(config)
        return time.process_time() - start

    cpu_seconds(config.replace(epochs=1))  # imports, and the allocation of memory
    line = fit_line(epochs, [cpu_seconds(config.replace(epochs=count)) for count in epochs])
    config = config.replace(workers=1)
    log = UsageLogger()
    Trainer(create_setup(config.replace(epochs=epochs[-1])), 0.01).fit(log)
    over_runs = []
    for _ in range(runs):
        cpu_seconds(config.replace(epochs=1))
        over_runs.append(asdict(resource_usage()))
    return {"line": line, "over_epochs": log.usage, "over_runs": over_runs}


def growth(lab: Lab, epochs: tuple[int, ...], runs: int) -> Iterator[Row]:
    """A process of its own measures; see `measure`."""
    arguments = ["-m", "tests.stress.growth", *epochs, runs]
    end = Script(lab, arguments).ended()
    if end.code:
        yield Row("13", "resource usage over epochs and runs", 1, 0, "", (end.err[-500:],))
        return
    measured = json.loads(end.out)
    line = measured["line"]
    what = f"CPU time of {', '.join(map(str, epochs))} epochs: on a straight line to within {MAX_OFF_LINE:.0%}"
    times = ", ".join(f"{seconds:.1f}" for seconds in line["seconds"])
    remark = f"{times} s, at most {line['max_residual']:.1%} off"
    yield Row("13", what, len(epochs), len(epochs) * (line["max_residual"] <= MAX_OFF_LINE), remark)
    yield _constant("14", "epochs", measured["over_epochs"], MAX_EPOCHS_GROWTH)
    yield _constant("15", "runs in one process", measured["over_runs"], MAX_RUN_GROWTH * (runs - 2))


def _constant(number: str, what: str, usage: list[dict[str, int]], max_growth: int) -> Row:
    """Compares with the second: the first may still start something."""
    first, later = usage[1], usage[2:]
    problems = tuple(
        f"{name}: {[row[name] for row in usage]}"
        for name in ("open_files", "processes", "threads")
        if any(row[name] > first[name] for row in later)
    )
    memory = [row["memory"] / 2**20 for row in usage]
    if later[-1]["memory"] - first["memory"] > max_growth:
        problems += (f"memory: {[round(value) for value in memory]} MiB",)
    held = 4 - len(problems)
    remark = f"memory {memory[1]:,.0f} to {memory[-1]:,.0f} MiB"
    return Row(
        number, f"memory, open files, processes, threads over {len(usage)} {what}: constant", 4, held, remark, problems
    )


if __name__ == "__main__":
    *counts, number_of_runs = map(int, sys.argv[1:])
    with tempfile.TemporaryDirectory() as run_folder:
        print(json.dumps(measure(Path(run_folder), counts, number_of_runs)))
