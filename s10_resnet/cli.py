"""The commands: flags in, exit code out. They are the scripts, the entry points and ``python -m s10_resnet``."""

from __future__ import annotations

import importlib
import multiprocessing
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from s10_resnet import arguments, config
from s10_resnet.errors import EnvironmentFailure, InputError, TrainingError, explain_system_error
from s10_resnet.utils.console import open_closed_streams, write_text
from s10_resnet.utils.launch import launch_env
from s10_resnet.utils.signals import ShutdownRequested, graceful_shutdown, ignore_signals


class Command(NamedTuple):
    """A command: its settings, the function that takes them, and its texts in --help."""

    settings: type[config.Settings]
    function: str  # module:name below the package, imported once the flags are valid: torch takes seconds
    description: str
    example: str
    resume: str = ""  # what --resume does, where there is that flag; the module's function ``resume`` is called


COMMANDS = {
    "train": Command(
        config.TrainConfig,
        "training.trainer:train",
        "Trains the ResNet on CIFAR-10.",
        "--epochs 24 --seed 1 --name second-run",
        "continue a run: its folder, or a checkpoint in it; the settings are those of the run",
    ),
    "find_lr": Command(
        config.FindLRConfig,
        "training.trainer:find_lr",
        "Recommends a maximum learning rate by the range test.",
        "--lr-finder-steps 200 --seed 1",
    ),
    "sweep": Command(
        config.SweepConfig,
        "experiments.sweep:sweep",
        "Trains several seeds and variants; evaluates on held-out images.",
        "max-lr=2e-3,5e-3 --num-seeds 5",
        "continue a sweep: its folder; more seeds or variants may be added",
    ),
    "evaluate": Command(
        config.EvaluateConfig,
        "evaluation.evaluate:evaluate_checkpoint",
        "Evaluates weights on the test images or on a folder of images.",
        "--checkpoint outputs/cifar10 --tta flip_shift",
    ),
    "predict": Command(
        config.PredictConfig,
        "evaluation.predict:predict_images",
        "Prints the three most probable classes of images.",
        "cat.jpg dog.png --checkpoint outputs/cifar10",
    ),
    "compare": Command(
        config.CompareConfig,
        "experiments.compare:compare",
        "Compares the curves, results and settings of runs.",
        "outputs/cifar10 outputs/second-run",
    ),
    "export": Command(
        config.ExportConfig,
        "models.export:export",
        "Exports weights to ONNX or safetensors, and checks the file.",
        "--checkpoint outputs/cifar10 --format onnx",
    ),
    "benchmark": Command(
        config.BenchmarkConfig,
        "benchmark.benchmark:benchmark",
        "Times the stages of a training, beside a baseline script.",
        "--quick",
    ),
}


def run(name: str, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs a command.

    Args:
        name: One of `COMMANDS`.
        argv: The arguments after the program's name; by default those of this process.
        prog: Name of the program in messages; by default that of this process.

    Returns:
        0; 1 if the training or the machine failed; 2 if the input was bad; 130 after Ctrl-C, 143 after SIGTERM. All
        but 0 print why, in one line.
    """
    command = COMMANDS[name]
    prog = prog or Path(sys.argv[0]).name
    rank, started = 0, False
    open_closed_streams()
    texts = {"prog": prog, "description": command.description, "epilog": f"example: {prog} {command.example}"}
    with graceful_shutdown():
        try:
            rank = launch_env().rank
            given = arguments.parse_args(command.settings, argv, resume_help=command.resume, **texts)
            path = given.pop("resume", None)
            settings = None if path else command.settings(**given)
            module_name, function = command.function.split(":")
            module = importlib.import_module(f"s10_resnet.{module_name}")
            prog, started = f"{prog}: rank {rank}" if rank else prog, True
            if path:
                module.resume(path, given)
            else:
                getattr(module, function)(settings)
        except InputError as error:
            # All ranks are given the same flags: one of them says what is wrong with them.
            return _fail(f"{prog}: error: {error}", 2, silent=rank > 0 and not started)
        except (TrainingError, EnvironmentFailure) as error:
            return _fail(f"{prog}: failed: {error}", 1)
        except ShutdownRequested as request:
            ignore_signals()  # another one would only change the exit code
            how = "interrupted" if request.signum == signal.SIGINT else "terminated"
            return _fail(f"{prog}: {how}", 128 + request.signum, silent=rank > 0)
        except Exception as error:
            cause = explain_system_error(error)
            if cause is None:
                raise
            return _fail(f"{prog}: failed: {cause}", 1)
        finally:
            for child in multiprocessing.active_children():  # after a second Ctrl-C there may be some
                child.kill()
    return 0


def _fail(line: str, code: int, *, silent: bool = False) -> int:
    if not silent:
        write_text(sys.stderr, " ".join(line.splitlines()) + "\n")
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m s10_resnet COMMAND ...``."""
    argv = list(sys.argv[1:] if argv is None else argv)
    names = {name.replace("_", "-"): name for name in COMMANDS}
    if argv[:1] in ([], ["-h"], ["--help"]):
        print("usage: python -m s10_resnet COMMAND [--help] ...\n")
        for shown, name in names.items():
            print(f"  {shown:<10} {COMMANDS[name].description}")
        return 0
    if argv[0] == "--version":
        argv = ["train", "--version"]
    name = argv[0].replace("-", "_")
    if name in COMMANDS:
        return run(name, argv[1:], prog=f"python -m s10_resnet {argv[0]}")
    return _fail(f"s10_resnet: error: {config.printable(argv[0])}: must be one of {', '.join(names)}", 2)


# The entry points, and what the scripts call.
train = partial(run, "train")
find_lr = partial(run, "find_lr")
sweep = partial(run, "sweep")
evaluate = partial(run, "evaluate")
predict = partial(run, "predict")
compare = partial(run, "compare")
export = partial(run, "export")
benchmark = partial(run, "benchmark")
