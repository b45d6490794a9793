"""The commands: flags in, exit code out. They are the scripts, and the entry points of an installed package."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from s10_resnet import flags
from s10_resnet.config import Config
from s10_resnet.errors import InputError, MachineError, TrainingError
from s10_resnet.options import Benchmark, Comparison, Evaluation, Export, Prediction, Sweep
from s10_resnet.settings import Settings
from s10_resnet.utils import signals


class Command(NamedTuple):
    """What a command does, with which settings."""

    settings: type[Settings]
    function: str  # module and name, imported once the flags are good: torch takes seconds
    description: str
    example: str  # flags
    resume: str = ""  # what ``--resume`` does, where there is that flag; it calls ``resume`` of the same module


COMMANDS = {
    "train": Command(
        Config,
        "training.recipe.train",
        "Trains the custom ResNet on CIFAR-10.",
        "--epochs 24 --seed 1 --name second-try",
        "go on with a run: its folder, or a checkpoint in it; settings are the run's own",
    ),
    "find_lr": Command(
        Config,
        "training.recipe.search_lr",
        "Runs the learning-rate range test and reads it.",
        "--finder-steps 200 --seed 1",
    ),
    "sweep": Command(
        Sweep,
        "experiments.sweep.sweep",
        "Trains variants of the recipe with several seeds each, on held-out images, and says what they are worth.",
        "max-lr=2e-3,5e-3,1e-2 'flip=alternating cutout=6' --runs 5",
        "go on with a sweep: its folder; settings are its own, with more --runs or variants if there are to be more",
    ),
    "evaluate": Command(
        Evaluation,
        "evaluation.evaluate.evaluate",
        "Evaluates trained weights on the test images or on a folder of pictures.",
        "--checkpoint outputs/cifar10/best.pt --tta six",
    ),
    "predict": Command(
        Prediction,
        "evaluation.predict.show",
        "Says what pictures are taken for: the three likeliest classes and their probabilities.",
        "--checkpoint outputs/cifar10/best.pt cat.jpg dog.png --plot seen.png",
    ),
    "compare": Command(
        Comparison,
        "experiments.compare.compare",
        "Lays the curves, results and settings of several runs beside each other.",
        "outputs/cifar10 outputs/second-try",
    ),
    "export": Command(
        Export,
        "models.export.export",
        "Writes a trained network for other programs, and checks what it wrote.",
        "--checkpoint outputs/cifar10/best.pt --format onnx",
    ),
    "benchmark": Command(
        Benchmark,
        "benchmark.benchmark.benchmark",
        "Times the stages of a training, beside the textbook script and a matrix product.",
        "--quick",
    ),
}


def train(argv: Sequence[str] | None = None) -> int:
    """``s10-train``, and ``scripts/train.py``."""
    return run("train", argv)


def find_lr(argv: Sequence[str] | None = None) -> int:
    """``s10-find-lr``, and ``scripts/find_lr.py``."""
    return run("find_lr", argv)


def sweep(argv: Sequence[str] | None = None) -> int:
    """``s10-sweep``, and ``scripts/sweep.py``."""
    return run("sweep", argv)


def evaluate(argv: Sequence[str] | None = None) -> int:
    """``s10-evaluate``, and ``scripts/evaluate.py``."""
    return run("evaluate", argv)


def predict(argv: Sequence[str] | None = None) -> int:
    """``s10-predict``, and ``scripts/predict.py``."""
    return run("predict", argv)


def compare(argv: Sequence[str] | None = None) -> int:
    """``s10-compare``, and ``scripts/compare.py``."""
    return run("compare", argv)


def export(argv: Sequence[str] | None = None) -> int:
    """``s10-export``, and ``scripts/export.py``."""
    return run("export", argv)


def benchmark(argv: Sequence[str] | None = None) -> int:
    """``s10-benchmark``, and ``scripts/benchmark.py``."""
    return run("benchmark", argv)


def run(name: str, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs one of the `COMMANDS`.

    Args:
        name: Which one.
        argv: The arguments after the program's name; by default those of this process.
        prog: What the program is called; by default as this process was.

    Returns:
        0; 1 if the training or the machine failed; 2 if the input was bad; 130 after Ctrl-C, 143 after SIGTERM. The
        last four say why in one line.
    """
    command = COMMANDS[name]
    prog = prog or Path(sys.argv[0]).name
    texts = {"prog": prog, "description": command.description, "epilog": f"example: {prog} {command.example}"}
    rank = os.environ.get("RANK") or "0"
    say = rank == "0"  # of bad flags, which all ranks have been given
    with signals.heeded():
        try:
            given = flags.read(command.settings, argv, resume=command.resume, **texts)
            path = given.pop("resume", None)
            settings = None if path else command.settings(**given)
            module, function = command.function.rsplit(".", 1)
            room = importlib.import_module(f"s10_resnet.{module}")

            prog, say = prog if say else f"{prog}: rank {rank}", True
            room.resume(path, given) if path else getattr(room, function)(settings)
        except InputError as error:
            return _fail(f"{prog}: error: {error}", 2, say)
        except (TrainingError, MachineError) as error:
            return _fail(f"{prog}: failed: {error}", 1)
        except signals.Stopped as stop:
            signals.ignore()  # one more would only change the exit code
            how = "interrupted" if stop.signum == signal.SIGINT else "terminated"
            return _fail(f"{prog}: {how}", 128 + stop.signum, say=rank == "0")
        except Exception as error:
            from s10_resnet.utils import faults

            cause = faults.explain(error)
            if cause is None:
                raise
            return _fail(f"{prog}: failed: {cause}", 1)
        finally:
            for child in multiprocessing.active_children():  # after a second Ctrl-C there may be some
                child.kill()
    return 0


def _fail(line: str, code: int, say: bool = True) -> int:
    if say:
        print(" ".join(line.splitlines()), file=sys.stderr)
    return code
