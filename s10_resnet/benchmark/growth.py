"""Whether what a training costs grows straight with its epochs, and whether anything is left over from run to run."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from s10_resnet.config import Config
from s10_resnet.data import loader as batches
from s10_resnet.errors import InputError
from s10_resnet.training import loop as engine
from s10_resnet.training import recipe, session
from s10_resnet.utils import console as terminal

EPOCHS = (8, 16, 24)
RUNS = 10


@dataclass(frozen=True)
class Footprint:
    """What this process holds at a moment.

    Attributes:
        memory: Resident bytes.
        device_memory: Bytes of tensors on the CUDA device; 0 without one.
        handles: Open files, sockets and pipes.
        processes: Children.
        threads: Of this process.
    """

    memory: int
    device_memory: int
    handles: int
    processes: int
    threads: int


def footprint() -> Footprint:
    """What this process holds now (Linux)."""
    own = Path("/proc/self")
    tasks = list((own / "task").iterdir())
    return Footprint(
        memory=int((own / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        device_memory=torch.cuda.memory_allocated() if torch.cuda.is_available() else 0,
        handles=len(list((own / "fd").iterdir())),
        processes=sum(len((task / "children").read_text().split()) for task in tasks),
        threads=len(tasks),
    )


def measure(config: Config) -> dict[str, Any]:
    """Trains 8, 16 and 24 epochs, 24 epochs once more without writing anything, and ten times one epoch.

    Returns:
        ``line``: see `fit_line`. ``over_epochs`` and ``over_runs``: the `Footprint` after each epoch or run.

    Raises:
        InputError: On another system than Linux.
    """
    if not Path("/proc/self/statm").exists():
        raise InputError("--growth: must be on Linux, whose /proc it reads")
    with tempfile.TemporaryDirectory() as folder:
        config = replace(config, output_dir=Path(folder), name="")
        line = fit_line(EPOCHS, [_seconds(replace(config, epochs=epochs)) for epochs in _shown(EPOCHS, "training")])
        over_epochs = _over_epochs(replace(config, epochs=EPOCHS[-1]))
        over_runs = []
        for _ in _shown(range(RUNS), "running again"):
            _seconds(replace(config, epochs=1))
            over_runs.append(asdict(footprint()))
    return {"line": line, "over_epochs": over_epochs, "over_runs": over_runs}


def fit_line(epochs: tuple[int, ...], seconds: list[float]) -> dict[str, Any]:
    """The straight line nearest to the times (least squares).

    Returns:
        ``epochs`` and ``seconds`` as given, ``start_up`` and ``epoch`` in seconds, and ``off_line``, the largest
        distance of a time from the line as a fraction of the time.
    """
    slope, start_up = np.polyfit(epochs, seconds, 1)
    line = start_up + slope * np.array(epochs)
    return {
        "epochs": list(epochs),
        "seconds": seconds,
        "start_up": float(start_up),
        "epoch": float(slope),
        "off_line": float(np.max(np.abs(line - seconds) / seconds)),
    }


def _seconds(config: Config) -> float:
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        recipe.train(config)
    return time.perf_counter() - start


def _over_epochs(config: Config) -> list[dict[str, int]]:
    run = session.begin(config)
    state, criterion = session.training_state(run, config.max_lr), session.criterion(run)
    evaluate = partial(engine.evaluate, state.result, *session.evaluation_tensors(run), criterion, run.runtime)
    amounts = {"epochs": config.epochs, "steps_per_epoch": run.steps_per_epoch}
    with batches.running(session.loader(run, config.epochs)) as stream:
        epochs = engine.fit(state, stream, criterion, evaluate, **amounts)
        return [asdict(footprint()) for _ in terminal.bar(epochs, config.epochs, "training", "epoch")]


def _shown(items: range | tuple[int, ...], description: str) -> Iterator[int]:
    return terminal.bar(items, len(items), description, "run")
