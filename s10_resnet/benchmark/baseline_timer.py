"""The textbook script in a process of its own, to be timed stage by stage."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import default_collate

from s10_resnet.benchmark import baseline as textbook
from s10_resnet.benchmark import timing
from s10_resnet.data import dataset as data
from s10_resnet.errors import MachineError
from s10_resnet.training.session import Session
from s10_resnet.utils import signals
from s10_resnet.utils.runtime import default_workers

MAX_LR = 5e-3
ENDLESS = 1_000_000  # steps: no schedule ends before the benchmark does
PIPELINE_IMAGES = 2048  # a tenth of a second and more

Timer = Callable[[str], float]


def workers(run: Session) -> int:
    """The worker processes of the textbook script: as many as the package's, or what it would take on the CPU."""
    return run.workers if run.config.augment_on == "cpu" else default_workers(run.runtime.device)


@contextmanager
def started(run: Session) -> Iterator[Timer]:
    """A process for the textbook script, which is not to profit from what the package does to its own.

    Yields:
        From the name of a stage to the seconds that the script takes for it; a `MachineError` if the process ends.
    """
    config = run.config
    asked = Asked(
        run.dataset,
        config.data_dir,
        len(run.train.labels),
        config.batch_size,
        workers(run),
        str(run.runtime.device),
    )
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, asked))
    with signals.withheld():
        process.start()
    theirs.close()  # so that reading ends when the process does

    def seconds(stage: str) -> float:
        try:
            ours.send(stage)
            return ours.recv()
        except (EOFError, OSError):
            raise MachineError("the textbook script ended early") from None

    try:
        yield seconds
    finally:
        process.kill()
        process.join()


class Asked(NamedTuple):
    """What the textbook script is to train on, and how: see the flags of `s10_resnet.benchmark.baseline`."""

    dataset: str
    data_dir: Path
    limit: int
    batch_size: int
    workers: int
    device: str


def serve(stages: Connection, asked: Asked) -> None:
    """Takes names of stages, ``pipeline``, ``step`` or ``epoch``, and gives the seconds of the textbook script."""
    device = torch.device(asked.device)
    train = data.load(asked.dataset, asked.data_dir)[0].take(slice(asked.limit))
    pictures = textbook.Pictures(train, train=True)
    parts = textbook.build(device, max_lr=MAX_LR, total_steps=ENDLESS)
    pin_memory = device.type == "cuda"
    loader = textbook.loader(train, asked.batch_size, asked.workers, train=True, pin_memory=pin_memory)
    batch = tuple(tensor.to(device) for tensor in default_collate([pictures[i] for i in range(asked.batch_size)]))

    def pipeline() -> None:
        for _ in range(pipeline_batches(asked.batch_size)):
            default_collate([pictures[i] for i in range(asked.batch_size)])

    while True:
        stage = stages.recv()
        if stage == "pipeline":
            with timing.one_thread():
                seconds = timing.seconds(pipeline)
        else:
            stream = repeat(batch, asked.limit // asked.batch_size) if stage == "step" else loader
            seconds = timing.seconds(timing.exhaust, textbook.train_steps(parts, stream, device))
        stages.send(seconds)


def pipeline_batches(batch_size: int) -> int:
    """How many batches the input pipeline is timed with."""
    return -(-PIPELINE_IMAGES // batch_size)
