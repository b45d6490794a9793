"""What the package does, from a `Config` to files in a run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from s10_resnet import flags
from s10_resnet.config import Config
from s10_resnet.errors import InputError, TrainingError
from s10_resnet.experiments import repetition
from s10_resnet.training import range_test, resumption, session
from s10_resnet.training import trainer as training
from s10_resnet.training.lr_finder import Suggestion
from s10_resnet.training.run_logger import CHECKPOINT, PREVIOUS
from s10_resnet.training.session import Session
from s10_resnet.utils import console as terminal
from s10_resnet.utils import io as files
from s10_resnet.utils import outputs, signals


@signals.heeded()
def train(config: Config) -> dict[str, Any]:
    """Trains the network and leaves records, weights and plots in a new run folder.

    With ``config.runs`` above 1 it does so as often, and what it returns is that of
    `s10_resnet.experiments.repetition`. Where ``torchrun`` starts its processes anew after a failure, the run goes on
    from its last checkpoint.

    Returns:
        The content of ``summary.json``; accuracies are fractions of 1. Nothing in processes other than rank 0.

    Raises:
        InputError: For settings that do not fit the machine or the data; nothing has been written then.
        TrainingError: If a loss is not a finite number, or ``max_lr="auto"`` finds none.
        MachineError: If the disk is full, a worker was killed and the like; the last checkpoint is whole.
        Stopped: After Ctrl-C or SIGTERM, once a checkpoint and everything of the finished epochs has been written.
    """
    if config.runs > 1:
        return repetition.repeat(config, train, _resume)
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        if not config.name:
            raise InputError("--name: must be given under torchrun, or what is restarted cannot find its run")
        for name in (config.name, outputs.substitute(config.name)):
            if (config.output_dir / name).is_dir():
                return _resume(config.output_dir / name, vars(config))
    run = session.begin(config)
    if run.runtime.rank:
        training.follow(run, run.runtime.share(0.0))
        return {}
    folder = _make_folder(run, "train")
    with files.locked(folder):
        return training.carry_out(run, folder, run.runtime.share(_max_lr(run, folder)))


@signals.heeded()
def resume(path: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Goes on with a run from its last checkpoint, to the very bits that it would have come to uninterrupted.

    That holds on a CPU with the same number of threads, on CUDA with ``deterministic``, and in the environment the run
    was begun in; another one is warned of.

    Args:
        path: The run's folder, or a checkpoint in it.
        asked: Settings that were given this time. They have to be those of the run, but for `resumption.FREE`.

    Returns:
        The content of ``summary.json``.

    Raises:
        InputError: If there is no such run, its checkpoint is damaged, its settings differ, or another process is
            working on it. Nothing has been changed then.
        TrainingError: See `train`.
        MachineError: See `train`.
        Stopped: See `train`.
    """
    return _resume(path, asked)


@signals.heeded()
def search_lr(config: Config) -> Suggestion:
    """Runs the learning-rate range test and leaves its curve and suggestions in a new run folder.

    Raises:
        InputError: For settings that do not fit the machine or the data; nothing has been written then.
        TrainingError: If the curve has no minimum; the folder holds it.
        Stopped: After Ctrl-C or SIGTERM.
    """
    run = session.begin(config)
    if run.runtime.world_size > 1:
        raise InputError("a range test is for one process: start it without torchrun")
    found = range_test.find(run, _make_folder(run, "find_lr"))
    if found.max_lr is None:
        raise TrainingError(found.reason)
    terminal.say(f"next: python scripts/train.py {flags.line(replace(config, max_lr=found.max_lr, runs=1, name=''))}")
    return found


def _resume(path: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    if (path / repetition.FILE).is_file():
        return repetition.go_on(path, asked, train, _resume)
    folder = path if path.is_dir() else path.parent
    follower = int(os.environ.get("RANK", 0)) > 0
    with ExitStack() as held:
        if not (folder / "config.json").is_file():
            raise InputError(f"--resume {path}: must be the folder of a run, or a checkpoint in it")
        if not follower:
            held.enter_context(files.locked(folder))
        config = _settings(folder)
        source = resumption.source(folder, path)
        saved = resumption.load(source) if source else None
        changed = resumption.differences(config, saved, asked)
        if changed:
            raise InputError(f"--resume {path}: a run cannot go on with other settings: {'; '.join(changed)}")
        config = replace(config, **{name: asked[name] for name in resumption.FREE if name in asked})
        run = session.begin(replace(config, dataset=saved["dataset"]) if saved else config)._replace(config=config)
        if follower:
            training.follow(run, run.runtime.share(0.0), saved)
            return {}
        terminal.say(f"going on in {folder}: {_what(run)}")
        if saved:
            resumption.warn_of_changes(saved["environment"], run.environment)
            resumption.check_history(folder, saved, run.split)
        max_lr = run.runtime.share(saved["max_lr"] if saved else _max_lr(run, folder))
        if source == folder / PREVIOUS:
            source.replace(folder / CHECKPOINT)  # or the next checkpoint would push out the good one, not the damaged
        return training.carry_out(run, folder, max_lr, saved)


def _settings(folder: Path) -> Config:
    path = folder / "config.json"
    try:
        return Config.from_json(outputs.read_json(path))
    except InputError as error:
        raise InputError(f"--resume {folder}: {path.name} does not hold the settings of a run ({error})") from None


def _max_lr(run: Session, folder: Path) -> float:
    if run.config.max_lr != "auto":
        return run.config.max_lr
    found = range_test.find(run.alone, folder)
    if found.max_lr is None:
        raise TrainingError(f"--max-lr auto: {found.reason}")
    return found.max_lr


def _make_folder(run: Session, command: str) -> Path:
    config = run.config
    substituted = config.dataset == "auto" and run.dataset == "synthetic"
    prefix = f"{command}-synthetic" if run.dataset == "synthetic" else command
    name = outputs.substitute(config.name) if substituted and config.name else config.name
    folder = outputs.make_run_folder(config.output_dir, name, prefix)
    outputs.write_json(folder / "config.json", config.to_json())
    if substituted:
        terminal.warn(
            "CIFAR-10 is not there and could not be downloaded: this run uses the built-in SYNTHETIC images.\n"
            "Its accuracy says nothing about CIFAR-10. --dataset cifar10 tells what to do about it."
        )
    terminal.say(f"writing to {folder}")
    terminal.say(_what(run))
    return folder


def _what(run: Session) -> str:
    return (
        f"{run.dataset}: {len(run.train.labels):,} training and {len(run.evaluation.labels):,} {run.split} images; "
        f"{run.runtime.device}, {run.runtime.precision}, {run.workers} workers"
    )
