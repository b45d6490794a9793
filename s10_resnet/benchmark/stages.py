"""What the benchmark times: the stages of a training, each done by the package and by the textbook script in turn."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from statistics import median

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from s10_resnet.benchmark import baseline_timer as textbook_timer
from s10_resnet.benchmark import timing
from s10_resnet.benchmark.baseline_timer import MAX_LR, Timer
from s10_resnet.data import loader as batches
from s10_resnet.errors import MachineError
from s10_resnet.training import loop as engine
from s10_resnet.training import session
from s10_resnet.training.session import Session
from s10_resnet.training.state import TrainingState
from s10_resnet.utils.runtime import DTYPES, Runtime

PROCESS = "whole process"
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


def pipeline(run: Session, repeats: int, textbook: Timer) -> Stage:
    """From arrays to augmented batches, by one core in this process, or the package's by the device."""
    loader = session.loader(run.alone, epochs=1)
    size = run.config.batch_size
    whole = [plan for plan in loader.sampler if len(plan.samples) == size]
    plans = list(islice(chain.from_iterable(repeat(whole)), textbook_timer.pipeline_batches(size)))

    def package() -> None:
        for plan in plans:
            loader.dataset[plan]
        timing.wait(run.runtime.device)

    with timing.one_thread():
        times = timing.alternately(lambda: timing.seconds(package), lambda: textbook("pipeline"), repeats)
    by = "one core" if run.config.augment_on == "cpu" else f"on {run.runtime.device}"
    return Stage(f"input pipeline, {by}", size * len(plans), *times)


def step(run: Session, repeats: int, textbook: Timer) -> Stage:
    """As many training steps as an epoch has whole batches, on batches that lie on the device."""
    steps = len(run.train.labels) // run.config.batch_size
    state, criterion = _training(run), session.criterion(run)
    batch = next(iter(session.loader(run._replace(workers=0), 1)))
    batch = tuple(tensor.to(run.runtime.device) for tensor in batch)
    times = timing.alternately(
        lambda: timing.seconds(timing.exhaust, engine.train_steps(state, repeat(batch, steps), criterion)),
        lambda: textbook("step"),
        repeats,
    )
    return Stage("training step", steps * run.config.batch_size, *times)


def epoch(run: Session, repeats: int, textbook: Timer) -> Stage:
    """A whole epoch of training, the way of the data included; the evaluation is not.

    The package's workers go on from epoch to epoch, so an epoch before it is not counted; the textbook's are started
    anew for each.
    """
    state, criterion = _training(run), session.criterion(run)
    before = run.steps_per_epoch if run.workers else 0

    def package() -> float:
        with batches.running(session.loader(run, 1 + bool(before))) as stream:
            timing.exhaust(engine.train_steps(state, islice(stream, before), criterion))
            return timing.seconds(timing.exhaust, engine.train_steps(state, stream, criterion))

    return Stage("whole epoch", len(run.train.labels), *timing.alternately(package, lambda: textbook("epoch"), repeats))


def process(run: Session, repeats: int, _: Timer) -> Stage:
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
        usual = ["-m", "s10_resnet.benchmark.baseline", *_words(common), "--workers", str(textbook_timer.workers(run))]
        for _ in range(repeats):
            for seconds, command in zip(times, (package, usual), strict=True):
                seconds.append(timing.seconds(_finish, [sys.executable, *command]))
    return Stage(f"{PROCESS}, --epochs {config.epochs}", config.epochs * len(run.train.labels), *times)


def matrix_product(run: Runtime, repeats: int) -> list[float]:
    """FLOP/s of a large matrix product in the runtime's number format: what the device gives at most."""
    size = MATRIX.get(run.device.type, LARGE_MATRIX)
    a, b = torch.randn(2, size, size, device=run.device).to(DTYPES[run.precision])
    product = torch.empty_like(a)

    def multiply(times: int) -> None:
        for _ in range(times):
            torch.mm(a, b, out=product)
        timing.wait(run.device)

    multiply(3)  # warm-up
    times = max(1, round(MATRIX_SECONDS / timing.seconds(multiply, 1)))
    return [2 * size**3 * times / timing.seconds(multiply, times) for _ in range(repeats)]


def flops_per_image(network: nn.Module) -> float:
    """Floating-point operations of a training step for one image: forward, and backward but for the pixels."""
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(2, 32, 32, 3, dtype=torch.uint8, device=device)).sum().backward()
    return counter.get_total_flops() / 2


def _training(run: Session) -> TrainingState:
    endless = replace(run.config, epochs=10_000)
    return session.training_state(run._replace(config=endless), MAX_LR)


def _finish(command: list[str]) -> None:
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise MachineError(f"the whole process ended with exit code {ended.returncode}: {ended.stderr.strip()[-300:]}")


def _words(flags: dict[str, object]) -> list[str]:
    return [str(part) for pair in flags.items() for part in pair]
