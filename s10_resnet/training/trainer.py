"""Training from beginning to end: read `Trainer.fit` first.

`train`, `resume` and `find_lr` are what the command line and the Python interface call.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from s10_resnet.arguments import format_args
from s10_resnet.config import FindLRConfig, TrainConfig
from s10_resnet.data.loader import iterate_batches
from s10_resnet.errors import EnvironmentFailure, InputError, TrainingError, explain_system_error
from s10_resnet.evaluation.inference import evaluate
from s10_resnet.models.resnet import count_parameters
from s10_resnet.training import checkpoint
from s10_resnet.training.loop import train_one_epoch
from s10_resnet.training.lr_finder import Suggestion
from s10_resnet.training.lr_search import search_lr
from s10_resnet.training.run_logger import RunLogger, TrainingLogger, require_tensorboard
from s10_resnet.training.setup import Setup, create_setup
from s10_resnet.training.state import EpochMetrics
from s10_resnet.utils.console import logger
from s10_resnet.utils.io import create_run_dir, exclusive_lock, read_json, write_json
from s10_resnet.utils.launch import command, launch_env
from s10_resnet.utils.signals import ShutdownRequested, defer_signals, graceful_shutdown, raise_pending


class Trainer:
    """Trains one network.

    Args:
        setup: Settings, data and device.
        max_lr: Peak learning rate.
        saved: The content of a checkpoint to continue from; by default the training starts at step 0.

    Attributes:
        state: The current training state.

    Raises:
        CheckpointError: If the checkpoint does not fit the settings.
    """

    def __init__(self, setup: Setup[TrainConfig], max_lr: float, saved: dict[str, Any] | None = None) -> None:
        self.setup, self.epochs = setup, setup.config.epochs
        self.state = setup.build_state(max_lr)
        self.criterion = setup.build_criterion()
        if saved is not None:
            checkpoint.restore(self.state, saved, self.epochs, setup.steps_per_epoch)
        self.eval_images, self.eval_labels = setup.eval_tensors()
        setup.runtime.barrier()  # no process writes before all have read

    def fit(self, log: TrainingLogger) -> None:
        """Trains from the current step to the end of the last epoch, in every process alike.

        Raises:
            TrainingError: If a loss is not finite. The parameters are those before that step.
            ShutdownRequested: After Ctrl-C or SIGTERM, between two steps.
        """
        state, steps_per_epoch = self.state, self.setup.steps_per_epoch
        loader = self.setup.build_loader(self.epochs, first_step=state.step)
        with iterate_batches(loader) as batches:
            for epoch in range(len(state.history) + 1, self.epochs + 1):
                remaining = epoch * steps_per_epoch - state.step  # fewer after a resume within an epoch
                train_one_epoch(state, islice(batches, remaining), self.criterion, log.on_step)
                metrics, eval_logits = self.evaluate(epoch)
                with defer_signals():
                    state.end_epoch(metrics, eval_logits)
                log.on_epoch_end(state)

    def evaluate(self, epoch: int) -> tuple[EpochMetrics, Tensor | None]:
        """Returns the metrics of a trained epoch and the logits of the evaluation images. Only rank 0 evaluates."""
        start = time.perf_counter()
        loss, accuracy, logits = 0.0, 0.0, None
        if self.setup.runtime.rank == 0:
            loss, accuracy, logits = evaluate(
                self.state.model, self.eval_images, self.eval_labels, self.criterion, self.setup.runtime
            )
        if not math.isfinite(loss):
            raise TrainingError(f"epoch {epoch}: the evaluation loss is not finite")
        running = self.state.metrics
        metrics = EpochMetrics(
            epoch=epoch,
            train_loss=running.loss,
            train_accuracy=running.accuracy,
            eval_loss=loss,
            eval_accuracy=accuracy,
            lr=running.lr,
            train_seconds=running.seconds,
            eval_seconds=time.perf_counter() - start,
            images_per_second=running.images / running.seconds,
        )
        return metrics, logits


def fit_run(
    setup: Setup[TrainConfig], run_dir: Path, saved: dict[str, Any] | None = None, *, quiet: bool = False
) -> dict[str, Any]:
    """Trains to the end in a run folder, which must be locked, and leaves it resumable however the training ends.

    A run that is not continued from a checkpoint, ``saved``, begins with the range test if ``max_lr`` is ``auto``.

    Returns:
        The content of ``summary.json``.

    Raises:
        TrainingError: If a loss is not finite.
        EnvironmentFailure: If the disk is full, a worker was killed and the like.
        ShutdownRequested: After Ctrl-C or SIGTERM, once everything is saved.
    """
    max_lr = setup.runtime.broadcast(saved["max_lr"] if saved else _resolve_max_lr(setup, run_dir))
    log = RunLogger(setup, run_dir, max_lr, quiet=quiet)
    try:
        trainer = Trainer(setup, max_lr, saved)
        state = trainer.state
        try:
            if not quiet:
                logger.info(f"{count_parameters(state.model):,} parameters, max LR {max_lr:.3g}")
            log.on_train_start(state)
            trainer.fit(log)
            return log.on_train_end(state, "completed")
        except ShutdownRequested as request:
            if not request.urgent:
                log.on_interrupt(state)
            raise
        except TrainingError as error:
            if state.history:
                log.on_train_end(state, "failed")
            kept = f"; {run_dir} contains the epochs before" if state.history else ""
            raise TrainingError(f"{error}; a lower --max-lr may help{kept}") from None
    except Exception as error:
        cause = explain_system_error(error)
        if cause is None:
            raise
        raise EnvironmentFailure(f"{cause}. {log.resume_hint}") from error
    finally:
        log.close()


def _fit_on_other_rank(setup: Setup[TrainConfig], saved: dict[str, Any] | None = None) -> None:
    """Takes part in the run of rank 0. A signal is deferred: rank 0 saves, then all end."""
    trainer = Trainer(setup, setup.runtime.broadcast(0.0), saved)
    try:
        with defer_signals():
            trainer.fit(TrainingLogger())
    except Exception as error:
        raise_pending()  # rank 0 ended because of the signal that was deferred here
        cause = explain_system_error(error)
        if cause is None:
            raise
        raise EnvironmentFailure(cause) from error


@graceful_shutdown()
def train(config: TrainConfig) -> dict[str, Any]:
    """Trains the network in a new run folder, which gets the records, weights and plots.

    Where ``torchrun`` restarts its processes after a failure, the run continues from its last checkpoint.

    Returns:
        The content of ``summary.json``; accuracies are fractions of 1. An empty dict in processes other than rank 0.

    Raises:
        InputError: For settings that do not fit the machine or the data; nothing has been written then.
        TrainingError: If a loss is not finite, or ``max_lr="auto"`` finds no learning rate.
        EnvironmentFailure: If the disk is full, a worker was killed and the like; the last checkpoint is intact.
        ShutdownRequested: After Ctrl-C or SIGTERM, once everything is saved.
    """
    if launch_env().restart_count:
        if not config.name:
            raise InputError("--name: is required under torchrun, so that restarted processes find their run")
        if (config.output_dir / config.name).is_dir():
            return resume(config.output_dir / config.name, dict(config))
    if config.tensorboard:
        require_tensorboard(config.output_dir)
    setup = create_setup(config)
    if setup.runtime.rank:
        _fit_on_other_rank(setup)
        return {}
    run_dir = _start_run(setup, "train")
    with exclusive_lock(run_dir):
        return fit_run(setup, run_dir)


@graceful_shutdown()
def resume(path: Path | str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Continues a run from its last checkpoint, bit-identical to an uninterrupted run.

    That holds on a CPU with the same number of threads, on CUDA with ``deterministic``, and in the environment the run
    was begun in; a changed environment is warned of.

    Args:
        path: The run folder, or a checkpoint in it.
        given: Settings given now. They must be those of the run, except for `checkpoint.RESUME_OVERRIDES`.

    Returns:
        The content of ``summary.json``.

    Raises:
        InputError: If there is no such run, its checkpoint is damaged, its settings differ, or another process is
            working on it. Nothing has been changed then.
        TrainingError, EnvironmentFailure, ShutdownRequested: See `train`.
    """
    path, given = Path(path), given or {}
    run_dir = path if path.is_dir() else path.parent
    other_rank = launch_env().rank > 0
    if not (run_dir / "config.json").is_file():
        raise InputError(f"--resume {path}: must be a run folder, or a checkpoint in one")
    with nullcontext() if other_rank else exclusive_lock(run_dir):
        source = checkpoint.find_checkpoint(run_dir, path)
        saved = checkpoint.load_checkpoint(source) if source else None
        setup = _resume_setup(run_dir, saved, given)
        if other_rank:
            _fit_on_other_rank(setup, saved)
            return {}
        logger.info(f"resuming {run_dir}\n{setup.description}")
        if saved:
            checkpoint.warn_of_changed_environment(saved["environment"], setup.environment)
        if source == run_dir / checkpoint.PREVIOUS:
            source.replace(run_dir / checkpoint.CHECKPOINT)  # else the next checkpoint would replace the intact one
        return fit_run(setup, run_dir, saved)


@graceful_shutdown()
def find_lr(config: FindLRConfig) -> Suggestion:
    """Runs the learning rate range test; its curve and suggestions are written to a new run folder.

    Raises:
        InputError: For settings that do not fit the machine or the data; nothing has been written then.
        TrainingError: If the curve has no minimum; the folder holds it.
        ShutdownRequested: After Ctrl-C or SIGTERM.
    """
    if launch_env().world_size > 1:
        raise InputError("torchrun: a range test runs in a single process")
    setup = create_setup(config)
    found = search_lr(setup, _start_run(setup, "find_lr"))
    if found.max_lr is None:
        raise TrainingError(found.reason)
    same = {name: value for name, value in dict(config).items() if name != "name" and not name.startswith("lr_finder_")}
    next_run = TrainConfig(**same, max_lr=found.max_lr)
    logger.info(f"next: {command('train')} {format_args(next_run)}")
    return found


def _resume_setup(run_dir: Path, saved: dict[str, Any] | None, given: Mapping[str, Any]) -> Setup[TrainConfig]:
    """Returns the setup of a run that is resumed, or refuses settings that are not those it was begun with."""
    try:
        content = read_json(run_dir / "config.json")
        config = TrainConfig.from_json(content)
    except InputError as error:
        raise InputError(f"--resume {run_dir}: config.json does not hold the settings of a run ({error})") from None
    if "epochs" not in content:
        raise InputError(f"--resume {run_dir}: must be the folder of a training run, and is that of a range test")
    changed = checkpoint.changed_settings(config, saved, given)
    if changed:
        raise InputError(
            f"--resume {run_dir}: a run cannot be resumed with other settings: {'; '.join(changed)}; "
            f"--config {run_dir / 'config.json'} starts a new run"
        )
    config = checkpoint.override_settings(config, given)
    # "auto" has to resolve to what the checkpoint was trained with; the setup keeps the settings as they were given.
    resolved = {"dataset": saved["dataset"], "augment_on": saved["environment"]["augment_on"]} if saved else {}
    return create_setup(config.replace(**resolved)).with_config(config)


def _resolve_max_lr(setup: Setup[TrainConfig], run_dir: Path) -> float:
    """Returns the peak learning rate of the settings; ``auto`` runs the range test."""
    if setup.config.max_lr != "auto":
        return setup.config.max_lr
    found = search_lr(setup.single_process(), run_dir)
    if found.max_lr is None:
        raise TrainingError(f"--max-lr auto: {found.reason}")
    return found.max_lr


def _start_run(setup: Setup, prefix: str) -> Path:
    """Creates the run folder with its config.json, and logs what will be done."""
    config = setup.config
    default_prefix = f"{prefix}-synthetic" if setup.dataset == "synthetic" else prefix
    run_dir = create_run_dir(config.output_dir, config.name, default_prefix)
    write_json(run_dir / "config.json", config.to_json())
    if config.dataset == "auto" and setup.dataset == "synthetic":
        logger.warning(
            "CIFAR-10 was not found and could not be downloaded: this run uses the SYNTHETIC data set. Its accuracy "
            "says nothing about CIFAR-10. --dataset cifar10 says what is missing."
        )
    logger.info(f"writing to {run_dir}\n{setup.description}")
    return run_dir
