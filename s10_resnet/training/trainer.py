"""One training in its folder, from wherever it stands to its end, written down so that nothing is lost on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from s10_resnet.data import loader as batches
from s10_resnet.errors import MachineError, TrainingError
from s10_resnet.models import resnet as model
from s10_resnet.reporting import figures as report
from s10_resnet.training import loop as engine
from s10_resnet.training import session
from s10_resnet.training.loop import Batches
from s10_resnet.training.run_logger import Notes
from s10_resnet.training.session import Session
from s10_resnet.training.state import EpochRecord, Totals, TrainingState
from s10_resnet.utils import console as terminal
from s10_resnet.utils import faults, signals
from s10_resnet.utils.serialization import CheckpointError


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


def _begin(run: Session, max_lr: float, saved: dict[str, Any] | None) -> TrainingState:
    state = session.training_state(run, max_lr)
    if saved is not None:
        try:
            state.load_state_dict(saved["state"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"--resume: the checkpoint does not fit the run ({type(error).__name__})") from None
        if state.step != len(state.history) * run.steps_per_epoch + state.totals.steps:
            raise CheckpointError("--resume: the checkpoint contradicts itself about the steps it has trained")
    run.runtime.meet()  # nobody writes before everybody has read
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


def _epochs(
    run: Session,
    state: TrainingState,
    stream: Batches,
    evaluate: Callable[[], tuple[float, float, Tensor | None]],
    watch: Callable[[Iterator[Totals]], Iterator[Totals]] = iter,
) -> Iterator[EpochRecord]:
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
    lrs = session.planned_lrs(run, notes.max_lr)
    report.draw_plan(notes.folder, *session.samples(run), lrs, run.steps_per_epoch, run.note)


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
