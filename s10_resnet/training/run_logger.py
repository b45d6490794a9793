"""What a training leaves in its folder: checkpoints to go on from, and what there is to see of its epochs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from s10_resnet.models import resnet as model
from s10_resnet.reporting import figures as report
from s10_resnet.reporting import html_report as page
from s10_resnet.reporting import model_card as card
from s10_resnet.training import session
from s10_resnet.training.session import Session
from s10_resnet.training.state import EpochRecord, Totals, TrainingState
from s10_resnet.training.tensorboard import Events
from s10_resnet.utils import console as terminal
from s10_resnet.utils import outputs
from s10_resnet.utils import serialization as checkpoint

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
CONTENT = {"state": dict, "max_lr": float, "config": dict, "dataset": str, "environment": dict}  # of a checkpoint


class Notes:
    """Writes a training down as it goes."""

    def __init__(self, run: Session, folder: Path, state: TrainingState, max_lr: float) -> None:
        self.run, self.folder, self.state, self.max_lr = run, folder, state, max_lr
        self.environment = run.environment
        self.events = Events(folder / "tensorboard", run.split) if run.config.tensorboard else None
        self.saved_state: tuple[int, int] | None = None  # steps and epochs
        self.saved_at = time.monotonic()

    @property
    def way_on(self) -> str:
        """How to go on from what is in the folder."""
        if not (self.folder / CHECKPOINT).exists():
            return f"Nothing has been saved yet; python scripts/train.py --resume {self.folder} begins again"
        return f"python scripts/train.py --resume {self.folder} goes on from the last checkpoint"

    def save(self) -> None:
        """Writes a checkpoint and keeps the one before it."""
        self.state.check()
        self.state.check_weights()
        content = {
            "state": self.state.state_dict(),
            "max_lr": self.max_lr,
            "config": self.run.config.to_json(),
            "dataset": self.run.dataset,
            "environment": self.environment,
        }
        checkpoint.save(self.folder / CHECKPOINT, content, previous=self.folder / PREVIOUS)
        self.saved_state, self.saved_at = (self.state.step, len(self.state.history)), time.monotonic()

    def save_in_time(self, steps: Iterator[Totals]) -> Iterator[Totals]:
        """Watches the steps go by and writes a checkpoint whenever the last one is old enough."""
        for totals in steps:
            yield totals
            if time.monotonic() - self.saved_at >= 60 * self.run.config.checkpoint_every_minutes:
                self.state.check()  # waits for the device, which is time of the steps; the rest is not
                start = time.perf_counter()
                self.save()
                totals.seconds -= time.perf_counter() - start

    def write_epochs(self, weights: bool = True) -> None:
        """Writes the history, and the weights if they are still those of the latest epoch."""
        run, history = self.run, self.state.history
        outputs.write_rows(self.folder / "history.csv", named(history, run.split))
        if self.events:
            self.events.log(history)
        if not weights:
            return
        content = {
            "model": self.state.result.state_dict(),
            "epoch": history[-1].epoch,
            f"{run.split}_accuracy": history[-1].eval_accuracy,
            "dataset": run.dataset,
            "classes": list(run.train.classes),
            "config": run.config.to_json(),
        }
        checkpoint.save(self.folder / "last.pt", content)
        if best_of(history) is history[-1]:
            checkpoint.save(self.folder / "best.pt", content)

    def conclude(self, status: str) -> dict[str, Any]:
        """Writes the summary and the pictures of the epochs that ended, and says what they came to."""
        run, history = self.run, self.state.history
        summary = self._summary(status)
        outputs.write_json(self.folder / "summary.json", summary)
        card.write(self.folder / "MODEL_CARD.md", summary, run.config.to_json(), run.train.classes)
        if self.events:
            self.events.close()
        probabilities = self.state.logits.softmax(1).numpy()
        report.draw_results(self.folder, history, run.evaluation, run.split, probabilities, run.note)
        self._write_page(summary, probabilities)
        terminal.say(
            f"{status} after epoch {summary['epochs']}: {run.dataset}, {run.split} accuracy "
            f"{summary[f'final_{run.split}_accuracy']:.2%} (best {summary[f'best_{run.split}_accuracy']:.2%} in epoch "
            f"{summary['best_epoch']}), {summary['train_seconds']:,.1f} s of training steps, "
            f"{summary['images_per_second']:,.0f} images/s"
        )
        terminal.say(f"see {self.folder / 'curves.png'} or, all in one, report.html")
        return summary

    def _write_page(self, summary: dict[str, Any], probabilities: np.ndarray) -> None:
        run = self.run
        images, labels, classes = run.evaluation
        samples, sample_names = session.samples(run)
        page.write(
            self.folder / "report.html",
            summary=summary,
            config=run.config.to_json(),
            history=self.state.history,
            split=run.split,
            lrs=session.planned_lrs(run, self.max_lr),
            steps_per_epoch=run.steps_per_epoch,
            images=images,
            labels=labels,
            classes=classes,
            probabilities=probabilities,
            samples=samples,
            sample_names=sample_names,
        )

    def _summary(self, status: str) -> dict[str, Any]:
        run, history = self.run, self.state.history
        last, best = history[-1], best_of(history)
        train_seconds = sum(record.train_seconds for record in history)
        return {
            "status": status,
            "dataset": run.dataset,
            "epochs": last.epoch,
            "parameters": model.count_parameters(self.state.model),
            "seed": run.config.seed,
            "max_lr": self.max_lr,
            "final_train_accuracy": last.train_accuracy,
            f"final_{run.split}_accuracy": last.eval_accuracy,
            "best_train_accuracy": max(record.train_accuracy for record in history),
            f"best_{run.split}_accuracy": best.eval_accuracy,
            "best_epoch": best.epoch,
            "final_train_loss": last.train_loss,
            f"final_{run.split}_loss": last.eval_loss,
            "train_images": len(run.train.labels),
            f"{run.split}_images": len(run.evaluation.labels),
            "train_seconds": train_seconds,
            "eval_seconds": sum(record.eval_seconds for record in history),
            "images_per_second": last.epoch * len(run.train.labels) / train_seconds,
            "workers": run.workers,
            **self.environment,
        }


def named(history: Sequence[EpochRecord], split: str) -> list[dict[str, float]]:
    """Records under the name of their evaluation images: a held-out figure is never called a test figure."""
    return [{key.replace("eval_", f"{split}_"): value for key, value in asdict(record).items()} for record in history]


def best_of(history: Sequence[EpochRecord]) -> EpochRecord:
    """The record with the highest accuracy, the first of equals."""
    return max(history, key=lambda record: record.eval_accuracy)
