"""One training in its folder, from wherever it stands to its end, written down so that nothing is lost on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from s10_resnet import batches, checkpoint, engine, faults, model, optim, outputs, report, session, signals, terminal
from s10_resnet.checkpoint import CheckpointError
from s10_resnet.errors import MachineError, TrainingError
from s10_resnet.session import Session
from s10_resnet.state import EpochRecord, Totals, TrainingState

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
CONTENT = {"state": dict, "max_lr": float, "config": dict, "dataset": str, "environment": dict}  # of a checkpoint


def carry_out(run: Session, folder: Path, max_lr: float, saved: dict[str, Any] | None = None) -> dict[str, Any]:
    """Trains to the end, in rank 0, which alone evaluates and writes.

    Args:
        run: The settled settings.
        folder: The run's, locked.
        max_lr: Peak learning rate.
        saved: The content of a checkpoint to go on from; by default the training begins.

    Returns:
        The content of ``summary.json``.

    Raises:
        CheckpointError: If ``saved`` does not fit the settings.
        TrainingError: If a loss is not a finite number.
        MachineError: If the disk is full, a worker was killed and the like.
        Stopped: After a signal, once a checkpoint has been written and everything of the finished epochs.
    """
    state = _begin(run, max_lr, saved)
    notes = Notes(run, folder, state, max_lr)
    terminal.say(f"{model.count_parameters(state.model):,} parameters, max LR {max_lr:.3g}")
    try:
        return _to_the_end(run, state, notes)
    except Exception as error:
        cause = faults.explain(error)
        if cause is None:
            raise
        raise MachineError(f"{cause}. {notes.way_on}") from error


def follow(run: Session, max_lr: float, saved: dict[str, Any] | None = None) -> None:
    """Takes part in the training of rank 0 from any other rank, up to its end.

    A signal is put off for as long as rank 0 goes on, which saves before it leaves.
    """
    state = _begin(run, max_lr, saved)
    loader = session.loader(run, run.config.epochs, first_step=state.step)
    try:
        with signals.uninterrupted(), batches.running(loader) as stream:
            for _ in _epochs(run, state, stream, lambda: (0.0, 0.0, None)):
                pass
    except Exception as error:
        signals.obey()  # rank 0 is gone because of the signal that was put off here
        cause = faults.explain(error)
        if cause is None:
            raise
        raise MachineError(cause) from error


class Notes:
    """What a training leaves in its folder: checkpoints to go on from, and what there is to see of its epochs."""

    def __init__(self, run: Session, folder: Path, state: TrainingState, max_lr: float) -> None:
        self.run, self.folder, self.state, self.max_lr = run, folder, state, max_lr
        self.environment = run.environment
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
        probabilities = self.state.logits.softmax(1).numpy()
        report.draw_results(self.folder, history, run.evaluation, run.split, probabilities, run.note)
        terminal.say(
            f"{status} after epoch {summary['epochs']}: {run.dataset}, {run.split} accuracy "
            f"{summary[f'final_{run.split}_accuracy']:.2%} (best {summary[f'best_{run.split}_accuracy']:.2%} in epoch "
            f"{summary['best_epoch']}), {summary['train_seconds']:,.1f} s of training steps, "
            f"{summary['images_per_second']:,.0f} images/s"
        )
        terminal.say(f"see {self.folder / 'curves.png'}")
        return summary

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


def _begin(run: Session, max_lr: float, saved: dict[str, Any] | None) -> TrainingState:
    state = session.training_state(run, max_lr)
    if saved is not None:
        try:
            state.load_state_dict(saved["state"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"--resume: the checkpoint does not fit the run ({type(error).__name__})") from None
        if state.step != len(state.history) * run.steps_per_epoch + state.totals.steps:
            raise CheckpointError("--resume: the checkpoint contradicts itself about the steps it has trained")
    run.runtime.share(0.0)  # nobody writes before everybody has read
    return state


def _to_the_end(run: Session, state: TrainingState, notes: Notes) -> dict[str, Any]:
    loader = session.loader(run, run.config.epochs, first_step=state.step)
    images, labels = session.evaluation_tensors(run)
    evaluate = partial(engine.evaluate, state.result, images, labels, session.criterion(run), run.runtime)
    try:
        _draw_plan(run, notes)
        if state.history:  # the run may have been killed between these and the checkpoint
            notes.write_epochs(weights=not state.totals.steps)
        with (
            terminal.Progress(run.config.epochs, len(run.train.labels), run.split, len(state.history)) as progress,
            batches.running(loader) as stream,
        ):
            for record in _epochs(run, state, stream, evaluate, lambda it: notes.save_in_time(progress.watch(it))):
                notes.save()
                notes.write_epochs()
                progress.report(record)
        return notes.conclude("completed")
    except signals.Stopped as stop:
        if not stop.urgent:
            _stop(state, notes)
        raise
    except TrainingError as error:
        if state.history:
            notes.conclude("failed")
        raise TrainingError(
            f"{error}; --max-lr is the first thing to lower, and scripts/find_lr.py finds one. {notes.folder} holds "
            "the epochs before"
        ) from None


def _epochs(run: Session, state: TrainingState, stream: Iterator, evaluate: Any, watch: Any = iter) -> Iterator:
    return engine.fit(
        state,
        stream,
        session.criterion(run),
        evaluate,
        epochs=run.config.epochs,
        steps_per_epoch=run.steps_per_epoch,
        watch=watch,
    )


def _draw_plan(run: Session, notes: Notes) -> None:
    """Draws what can be drawn before the training, if that has not been done."""
    if (notes.folder / report.LAST_OF_PLAN).exists():
        return
    first = session.loader(run.alone, epochs=1)
    images, labels = first.dataset[next(iter(first.sampler))]
    names = [run.train.classes[label] for label in labels]
    lrs = optim.planned_lrs(**session.schedule(run, notes.max_lr))
    report.draw_plan(notes.folder, images.numpy(), names, lrs, run.steps_per_epoch, run.note)


def _stop(state: TrainingState, notes: Notes) -> None:
    """Leaves everything as it should be found."""
    if notes.saved_state != (state.step, len(state.history)):
        notes.save()
    if state.history:
        notes.write_epochs(weights=not state.totals.steps)
        notes.conclude("interrupted")
    terminal.say(
        f"saved after step {state.step:,} of {state.scheduler.total_steps:,}; "
        f"python scripts/train.py --resume {notes.folder} goes on from there"
    )
