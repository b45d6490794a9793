"""What the benchmark times: the stages of a training, each done by the package and by the textbook script in turn."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from statistics import median

import torch
from torch import nn
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

from s10_resnet import batches, engine, session, textbook
from s10_resnet.errors import MachineError
from s10_resnet.runtime import DTYPES, Runtime, default_workers
from s10_resnet.session import Session
from s10_resnet.state import TrainingState

PROCESS = "whole process"
MAX_LR = 5e-3
PIPELINE_IMAGES = 2048  # a tenth of a second and more
MATRIX = {"cpu": 2048}  # rows and columns; elsewhere LARGE_MATRIX: each as large as its rate still grows
LARGE_MATRIX = 8192
MATRIX_SECONDS = 0.2


@dataclass(frozen=True)
class Stage:
    """How long a stage took, time after time.

    Attributes:
        name: What the table calls it.
        images: Training images that went through it each time.
        package: Seconds of the package.
        textbook: Seconds of the textbook script.
    """

    name: str
    images: int
    package: list[float]
    textbook: list[float]

    @property
    def rates(self) -> tuple[float, float]:
        """Images a second of the package and of the textbook script, by their median times."""
        return self.images / median(self.package), self.images / median(self.textbook)

    @property
    def ratio(self) -> float:
        """How many times as fast as the textbook script the package is."""
        return median(self.textbook) / median(self.package)


def pipeline(run: Session, repeats: int) -> Stage:
    """From arrays to augmented batches, by one core in this process, or the package's by the device."""
    loader = session.loader(run.alone, epochs=1)
    plans = list(islice(chain.from_iterable(repeat(loader.sampler)), -(-PIPELINE_IMAGES // run.config.batch_size)))
    pictures = textbook.Pictures(run.train, train=True)

    def package() -> None:
        for plan in plans:
            loader.dataset[plan]
        _wait(run.runtime.device)

    def usual() -> None:
        for plan in plans:
            default_collate([pictures[sample] for sample in plan.samples])

    with _one_thread():
        times = _alternately(package, usual, repeats)
    by = "one core" if run.config.augment_on == "cpu" else f"on {run.runtime.device}"
    return Stage(f"input pipeline, {by}", sum(len(plan.samples) for plan in plans), *times)


def step(run: Session, repeats: int) -> Stage:
    """As many training steps as an epoch has whole batches, on batches that lie on the device."""
    device, steps = run.runtime.device, len(run.train.labels) // run.config.batch_size
    state, parts = _training(run), _usual_training(run)
    batch = tuple(tensor.to(device) for tensor in next(iter(_loader(run, 1, workers=0))))
    usual_batch = tuple(tensor.to(device) for tensor in next(iter(_usual_loader(run, workers=0))))
    criterion = session.criterion(run)
    times = _alternately(
        lambda: _exhaust(engine.train_steps(state, repeat(batch, steps), criterion)),
        lambda: _exhaust(textbook.train_steps(parts, repeat(usual_batch, steps), device)),
        repeats,
    )
    return Stage("training step", steps * run.config.batch_size, *times)


def epoch(run: Session, repeats: int) -> Stage:
    """A whole epoch of training, the way of the data included; the evaluation is not.

    The package's workers go on from epoch to epoch, so an epoch before it is not counted; the textbook's are started
    anew for each.
    """
    state, parts = _training(run), _usual_training(run)
    criterion = session.criterion(run)
    before = run.steps_per_epoch if run.workers else 0
    times: tuple[list[float], list[float]] = [], []
    for _ in range(repeats):
        with batches.running(_loader(run, 1 + bool(before), run.workers)) as stream:
            _exhaust(engine.train_steps(state, islice(stream, before), criterion))
            times[0].append(_seconds(_exhaust, engine.train_steps(state, stream, criterion)))
        usual = textbook.train_steps(parts, _usual_loader(run, usual_workers(run)), run.runtime.device)
        times[1].append(_seconds(_exhaust, usual))
    return Stage("whole epoch", len(run.train.labels), *times)


def process(run: Session, repeats: int) -> Stage:
    """The whole script from cold: imports, data, workers, training, evaluation every epoch, plots."""
    config = run.config
    common = {
        "--dataset": run.dataset,
        "--data-dir": config.data_dir,
        "--limit": len(run.train.labels),
        "--epochs": config.epochs,
        "--batch-size": config.batch_size,
        "--max-lr": MAX_LR,
        "--device": run.runtime.device,
    }
    times: tuple[list[float], list[float]] = [], []
    with tempfile.TemporaryDirectory() as folder:
        train = ["-c", "import sys; from s10_resnet.cli import train; sys.exit(train())"]
        own = {"--workers": run.workers, "--augment-on": config.augment_on, "--output-dir": folder}
        package = [*train, *_words(common), *_words(own)]
        usual = ["-m", "s10_resnet.textbook", *_words(common), "--workers", str(usual_workers(run))]
        for _ in range(repeats):
            for seconds, command in zip(times, (package, usual), strict=True):
                seconds.append(_seconds(_finish, [sys.executable, *command]))
    return Stage(f"{PROCESS}, --epochs {config.epochs}", config.epochs * len(run.train.labels), *times)


def matrix_product(run: Runtime, repeats: int) -> list[float]:
    """FLOP/s of a large matrix product in the runtime's number format: what the device gives at most."""
    size = MATRIX.get(run.device.type, LARGE_MATRIX)
    a, b = torch.randn(2, size, size, device=run.device).to(DTYPES[run.precision])
    product = torch.empty_like(a)

    def multiply(times: int) -> None:
        for _ in range(times):
            torch.mm(a, b, out=product)
        _wait(run.device)

    multiply(3)  # warm-up
    times = max(1, round(MATRIX_SECONDS / _seconds(multiply, 1)))
    return [2 * size**3 * times / _seconds(multiply, times) for _ in range(repeats)]


def flops_per_image(network: nn.Module) -> float:
    """Floating-point operations of a training step for one image: forward, and backward but for the pixels."""
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(2, 32, 32, 3, dtype=torch.uint8, device=device)).sum().backward()
    return counter.get_total_flops() / 2


def usual_workers(run: Session) -> int:
    """The worker processes of the textbook script: as many as the package's, or what it would take on the CPU."""
    return run.workers if run.config.augment_on == "cpu" else default_workers(run.runtime.device)


def _training(run: Session) -> TrainingState:
    endless = run._replace(config=replace(run.config, epochs=10_000))  # the schedule is not to end before the benchmark
    return session.training_state(endless, MAX_LR)


def _usual_training(run: Session) -> textbook.Parts:
    return textbook.build(run.runtime.device, max_lr=MAX_LR, total_steps=10_000 * run.steps_per_epoch)


def _loader(run: Session, epochs: int, workers: int) -> torch.utils.data.DataLoader:
    return session.loader(run._replace(workers=workers), epochs)


def _usual_loader(run: Session, workers: int) -> torch.utils.data.DataLoader:
    pin_memory = run.runtime.device.type == "cuda"
    return textbook.loader(run.train, run.config.batch_size, workers, train=True, pin_memory=pin_memory)


def _alternately(
    package: Callable[[], None], usual: Callable[[], None], repeats: int
) -> tuple[list[float], list[float]]:
    """In turn, so that a machine whose speed changes is as slow for the one as for the other; the first is warm-up."""
    pairs = [(_seconds(package), _seconds(usual)) for _ in range(repeats + 1)][1:]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _seconds(work: Callable[..., None], *arguments: object) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def _exhaust(steps: Iterator[object]) -> None:
    deque(steps, maxlen=0)


def _finish(command: list[str]) -> None:
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise MachineError(f"the whole process ended with exit code {ended.returncode}: {ended.stderr.strip()[-300:]}")


def _words(flags: dict[str, object]) -> list[str]:
    return [str(part) for pair in flags.items() for part in pair]


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
