"""Writes checkpoints, weights, metrics and plots, and logs the progress."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from s10_resnet.config import TrainConfig
from s10_resnet.errors import InputError
from s10_resnet.models.resnet import count_parameters
from s10_resnet.reporting import figures, html_report, model_card
from s10_resnet.training.checkpoint import CHECKPOINT, PREVIOUS
from s10_resnet.training.optim import planned_lrs
from s10_resnet.training.progress import Progress
from s10_resnet.training.setup import Setup
from s10_resnet.training.state import EpochMetrics, TrainingState
from s10_resnet.utils import serialization
from s10_resnet.utils.console import logger, warn_on_error
from s10_resnet.utils.environment import require_optional
from s10_resnet.utils.io import link_or_copy, write_csv, write_json
from s10_resnet.utils.launch import command

EPOCH_END_SECONDS = 10.0  # between saves at the ends of epochs: one takes as long as half an epoch on a fast GPU


class TrainingLogger:
    """The hooks of `Trainer.fit`; this one does nothing, for ranks other than 0 and for measurements."""

    def on_step(self, state: TrainingState) -> None:
        """Called after every optimizer step."""

    def on_epoch_end(self, state: TrainingState) -> None:
        """Called after the evaluation of every epoch, when the state holds its metrics."""


class RunLogger(TrainingLogger):
    """Writes a run folder.

    Args:
        setup: What is trained.
        run_dir: The run folder, locked.
        max_lr: Peak learning rate.
        quiet: Write no plots and no report, and log no line per epoch.
    """

    def __init__(self, setup: Setup[TrainConfig], run_dir: Path, max_lr: float, *, quiet: bool = False) -> None:
        self.setup, self.config, self.run_dir, self.max_lr = setup, setup.config, run_dir, max_lr
        self.quiet = quiet
        self.draws_setup = not quiet and not (run_dir / "lr_schedule.png").exists()
        self.environment = setup.environment
        self.progress = Progress(
            setup.config.epochs, len(setup.train.labels), setup.steps_per_epoch, setup.eval_split, lines=not quiet
        )
        self.tensorboard = TensorBoardWriter(run_dir / "tensorboard") if setup.config.tensorboard else None
        self.unsaved_weights: dict[str, dict[str, Any]] = {}  # content of last.pt and best.pt
        self.saved_position: tuple[int, int] | None = None  # steps and epochs of the last checkpoint
        self.saved_at = time.monotonic()
        self.checkpoint_seconds = 60 * setup.config.checkpoint_every_minutes

    @property
    def resume_hint(self) -> str:
        """How to continue from what is in the folder."""
        line = command("train", "--resume", self.run_dir)
        if not (self.run_dir / CHECKPOINT).exists():
            return f"Nothing has been saved yet. To start again: {line}"
        return f"To continue from the last checkpoint: {line}"

    def on_train_start(self, state: TrainingState) -> None:
        """Writes the metrics of a resumed run again, and starts the progress display."""
        if state.history:  # the process may have been killed between writing the checkpoint and these
            self._write_metrics(state)
        if len(state.history) == self.config.epochs and not self.quiet:
            logger.info("all epochs have been trained: the summary, the plots and the report are written again")
        self.progress.start(state)

    def on_step(self, state: TrainingState) -> None:
        """Updates the progress, and saves a checkpoint if the last one is old enough."""
        self.progress.on_step(state)
        if time.monotonic() - self.saved_at >= self.checkpoint_seconds:
            self.save_checkpoint(state)

    def on_epoch_end(self, state: TrainingState) -> None:
        """Writes the metrics, and weights and checkpoint if the last ones are some seconds old."""
        self._keep_weights(state)
        if time.monotonic() - self.saved_at >= min(EPOCH_END_SECONDS, self.checkpoint_seconds):
            self.save_checkpoint(state)
        self._write_metrics(state)
        self.progress.on_epoch_end(state)
        if len(state.history) == 1:  # not before the first step, which it would delay by a second
            self._draw_setup()

    def on_train_end(self, state: TrainingState, status: str) -> dict[str, Any]:
        """Writes the summary, the plots and the report, and logs the result.

        Returns:
            The content of ``summary.json``.
        """
        self.progress.close()
        if status == "completed":
            self._save_if_new(state)
        self._write_weights()
        summary = self._summarize(state, status)
        write_json(self.run_dir / "summary.json", summary)
        if self.quiet:
            return summary
        self._draw_setup()
        with warn_on_error("a plot could not be drawn"):
            self._draw_results(state, summary)
        split = summary["eval_split"]
        logger.info(
            f"{status} after epoch {summary['epochs']}: {summary['dataset']}, {split} accuracy "
            f"{summary['final_eval_accuracy']:.2%}"
        )
        logger.info(
            f"best {split} accuracy {summary['best_eval_accuracy']:.2%} in epoch {summary['best_epoch']}; "
            f"{summary['train_seconds']:,.1f} s of training steps, {summary['images_per_second']:,.0f} images/s"
        )
        if (self.run_dir / "report.html").exists():
            logger.info(f"see {self.run_dir / 'curves.png'}, or report.html for everything on one page")
        return summary

    def on_interrupt(self, state: TrainingState) -> None:
        """Saves everything, so that the run can be resumed from this step."""
        self.progress.close()
        if state.history and state.metrics.steps == 0:  # the signal may have come before `on_epoch_end`
            self._keep_weights(state)
        self._save_if_new(state)
        if state.history:
            self._write_metrics(state)
            self.on_train_end(state, "interrupted")
        if not self.quiet:
            total = self.config.epochs * self.setup.steps_per_epoch
            logger.info(f"saved after step {state.step:,} of {total:,}")
            logger.info(f"to continue: {command('train', '--resume', self.run_dir)}")

    def save_checkpoint(self, state: TrainingState) -> None:
        """Writes the weights of the epochs so far and a checkpoint, and keeps the previous one.

        Raises:
            TrainingError: If a loss or a weight is not finite; nothing is written then.
        """
        state.check_loss()
        state.check_weights()
        self._write_weights()  # first: a run that is resumed does not have them any more
        content = {
            "state": state.state_dict(),
            "max_lr": self.max_lr,
            "config": self.config.to_json(),
            "dataset": self.setup.dataset,
            "environment": self.environment,
        }
        serialization.save(self.run_dir / CHECKPOINT, content, previous=self.run_dir / PREVIOUS)
        self.saved_position, self.saved_at = (state.step, len(state.history)), time.monotonic()

    def _save_if_new(self, state: TrainingState) -> None:
        if self.saved_position != (state.step, len(state.history)):
            self.save_checkpoint(state)

    def close(self) -> None:
        """Ends progress bars and the TensorBoard writer."""
        self.progress.close()
        if self.tensorboard is not None:
            self.tensorboard.close()

    def _write_metrics(self, state: TrainingState) -> None:
        try:
            write_csv(self.run_dir / "history.csv", [asdict(metrics) for metrics in state.history])
        except PermissionError as error:  # on Windows, another program may have it open; the checkpoint holds the same
            logger.warning(f"history.csv could not be written ({error.strerror})")
        if self.tensorboard is not None:
            self.tensorboard.log(state.history)

    def _keep_weights(self, state: TrainingState) -> None:
        """Copies the weights at the end of an epoch, for last.pt and, if it is the best so far, for best.pt."""
        last = state.history[-1]
        content = {
            "model": {name: tensor.clone() for name, tensor in state.model.state_dict().items()},
            "epoch": last.epoch,
            "eval_accuracy": last.eval_accuracy,
            "eval_split": self.setup.eval_split,
            "dataset": self.setup.dataset,
            "classes": list(self.setup.train.classes),
            "config": self.config.to_json(),
        }
        self.unsaved_weights["last.pt"] = content
        if best_epoch(state.history) is last:
            self.unsaved_weights["best.pt"] = content

    def _write_weights(self) -> None:
        """Writes the weights that have been kept; best.pt is a hard link of last.pt if they are the same."""
        last, best = (self.unsaved_weights.get(name) for name in ("last.pt", "best.pt"))
        if last:
            serialization.save(self.run_dir / "last.pt", last)
        if best and best is last:
            link_or_copy(self.run_dir / "last.pt", self.run_dir / "best.pt")
        elif best:
            serialization.save(self.run_dir / "best.pt", best)
        self.unsaved_weights = {}

    def _summarize(self, state: TrainingState, status: str) -> dict[str, Any]:
        setup, history = self.setup, state.history
        last, best = history[-1], best_epoch(history)
        train_seconds = sum(metrics.train_seconds for metrics in history)
        return {
            "status": status,
            "dataset": setup.dataset,
            "eval_split": setup.eval_split,
            "epochs": last.epoch,
            "parameters": count_parameters(state.model),
            "seed": setup.config.seed,
            "max_lr": self.max_lr,
            "final_train_accuracy": last.train_accuracy,
            "final_eval_accuracy": last.eval_accuracy,
            "best_train_accuracy": max(metrics.train_accuracy for metrics in history),
            "best_eval_accuracy": best.eval_accuracy,
            "best_epoch": best.epoch,
            "final_train_loss": last.train_loss,
            "final_eval_loss": last.eval_loss,
            "train_images": len(setup.train.labels),
            "eval_images": len(setup.eval.labels),
            "train_seconds": train_seconds,
            "eval_seconds": sum(metrics.eval_seconds for metrics in history),
            "images_per_second": last.epoch * len(setup.train.labels) / train_seconds,
            "workers": setup.workers,
            **self.environment,
        }

    def _draw_setup(self) -> None:
        """Draws samples.png and lr_schedule.png, once."""
        if not self.draws_setup:
            return
        setup = self.setup
        with warn_on_error("a plot could not be drawn"):
            images, labels = setup.first_batch()
            lrs = planned_lrs(**setup.schedule(self.max_lr))
            figures.plot_setup(self.run_dir, images, labels, lrs, setup.steps_per_epoch, dataset=setup.dataset)
        self.draws_setup = False

    def _draw_results(self, state: TrainingState, summary: dict[str, Any]) -> None:
        setup, config = self.setup, self.config.to_json()
        model_card.write_model_card(self.run_dir / "MODEL_CARD.md", summary, config, setup.train.classes)
        assert state.eval_logits is not None
        probabilities = state.eval_logits.softmax(1).numpy()
        lrs, steps = planned_lrs(**setup.schedule(self.max_lr)), setup.steps_per_epoch
        samples = setup.first_batch()
        run = figures.RunData(summary, config, state.history, lrs, steps, *samples, setup.eval, probabilities)
        figures.plot_results(self.run_dir, run)
        html_report.write_report(self.run_dir / "report.html", run)


class TensorBoardWriter:
    """Writes the metrics of epochs for ``tensorboard --logdir outputs``; an optional dependency."""

    def __init__(self, log_dir: Path) -> None:
        self.log_dir = log_dir
        self.module = require_tensorboard(log_dir)
        self.writer: Any = None
        self.written = 0

    def log(self, history: Sequence[EpochMetrics]) -> None:
        """Writes the epochs that are new. Those an earlier process wrote of the same run are replaced."""
        if self.writer is None:
            self.writer = self.module.SummaryWriter(self.log_dir, purge_step=1)
        for metrics in history[self.written :]:
            scalars = {
                "loss/train": metrics.train_loss,
                "loss/eval": metrics.eval_loss,
                "accuracy/train": metrics.train_accuracy,
                "accuracy/eval": metrics.eval_accuracy,
                "lr": metrics.lr,
                "images_per_second": metrics.images_per_second,
            }
            for tag, value in scalars.items():
                self.writer.add_scalar(tag, value, metrics.epoch)
        self.written = len(history)
        self.writer.flush()

    def close(self) -> None:
        """Ends the writer's thread."""
        if self.writer is not None:
            self.writer.close()


def require_tensorboard(folder: Path) -> Any:
    """Returns torch.utils.tensorboard.

    Raises:
        InputError: If it is not installed, or cannot write below this folder.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise InputError(f"--tensorboard: needs a path in UTF-8; {folder} is none") from None
    require_optional("tensorboard", "tensorboard", "--tensorboard")
    return require_optional("torch.utils.tensorboard", "tensorboard", "--tensorboard")


def best_epoch(history: Sequence[EpochMetrics]) -> EpochMetrics:
    """Returns the epoch with the highest evaluation accuracy, the first of equals."""
    return max(history, key=lambda metrics: metrics.eval_accuracy)
