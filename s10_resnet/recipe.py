"""The two things the package does, from a `Config` to files in a run folder. The only file that knows all others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from s10_resnet import checkpoint, engine, flags, lr_finder, model, optim, outputs, report, session, terminal
from s10_resnet.config import Config
from s10_resnet.engine import EpochRecord
from s10_resnet.errors import TrainingError
from s10_resnet.session import Session

STATUS = {type(None): "completed", KeyboardInterrupt: "interrupted", TrainingError: "failed"}


def train(config: Config) -> dict[str, Any]:
    """Trains the network and leaves records, weights and plots in a new run folder.

    Returns:
        The content of ``summary.json``; accuracies are fractions of 1.

    Raises:
        InputError: For settings that do not fit the machine or the data; nothing has been written then.
        TrainingError: If the loss stops being a number, or ``max_lr="auto"`` finds none.
        KeyboardInterrupt: After Ctrl-C, once everything of the finished epochs has been written.
    """
    run = session.begin(config)
    folder = _make_folder(run, "train")
    max_lr = config.max_lr
    if max_lr == "auto":
        found = _find_lr(run, folder)
        if found.max_lr is None:
            raise TrainingError(f"--max-lr auto: {found.reason}")
        max_lr = found.max_lr

    network = session.network(run)
    terminal.say(f"{model.count_parameters(network):,} parameters, max LR {max_lr:.3g}")
    history: list[EpochRecord] = []
    stop: BaseException | None = None
    try:
        for record in _epochs(run, network, max_lr, folder):
            _keep(record, history, run, network, folder)
            history.append(record)
    except (KeyboardInterrupt, TrainingError) as error:
        stop = error
    summary = {}
    if history:
        summary = _summary(run, history, max_lr, STATUS[type(stop)], model.count_parameters(network))
        outputs.write_json(folder / "summary.json", summary)
        _show(run, network, history, summary, folder)
    if stop is not None:
        raise stop
    return summary


def search_lr(config: Config) -> lr_finder.Suggestion:
    """Runs the learning-rate range test and leaves its curve and suggestions in a new run folder.

    Raises:
        InputError: For settings that do not fit the machine or the data; nothing has been written then.
        TrainingError: If the curve has no minimum; the folder holds it.
    """
    run = session.begin(config)
    found = _find_lr(run, _make_folder(run, "find_lr"))
    if found.max_lr is None:
        raise TrainingError(found.reason)
    terminal.say(f"next: python scripts/train.py {flags.line(replace(config, max_lr=found.max_lr, name=''))}")
    return found


def _make_folder(run: Session, command: str) -> Path:
    config = run.config
    substituted = config.dataset == "auto" and run.dataset == "synthetic"
    prefix = f"{command}-synthetic" if run.dataset == "synthetic" else command
    name = f"synthetic-{config.name}" if substituted and config.name else config.name
    folder = outputs.make_run_folder(config.output_dir, name, prefix)
    outputs.write_json(folder / "config.json", config.to_json())
    if substituted:
        terminal.warn(
            "CIFAR-10 is not there and could not be downloaded: this run uses the built-in SYNTHETIC images.\n"
            "Its accuracy says nothing about CIFAR-10. --dataset cifar10 tells what to do about it."
        )
    terminal.say(f"writing to {folder}")
    terminal.say(
        f"{run.dataset}: {len(run.train.labels):,} training and {len(run.evaluation.labels):,} {run.split} images; "
        f"{run.runtime.device}, {run.runtime.precision}, {run.workers} workers"
    )
    return folder


def _find_lr(run: Session, folder: Path) -> lr_finder.Suggestion:
    config, network = run.config, session.network(run)
    curve = lr_finder.range_test(
        network,
        session.loader(run, epochs=math.ceil(config.finder_steps / run.steps_per_epoch)),
        session.optimizer(run, network, lr=config.finder_start_lr),
        session.criterion(run),
        run.runtime,
        start_lr=config.finder_start_lr,
        end_lr=config.finder_end_lr,
        steps=config.finder_steps,
        watch=partial(terminal.range_test_bar, total=config.finder_steps),
    )
    found = lr_finder.suggest(curve)
    for lr, loss, smoothed in zip(curve.lrs, curve.losses, lr_finder.smooth(curve), strict=True):
        outputs.append_row(folder / "lr_finder.csv", {"lr": lr, "loss": loss, "smoothed_loss": smoothed})
    content = {
        "recommended_max_lr": found.max_lr,
        "reason": found.reason,
        "suggestions": found.suggestions,
        "dataset": run.dataset,
        "config": config.to_json(),
        **outputs.provenance(run.runtime.device),
    }
    outputs.write_json(folder / "lr_finder.json", content)
    report.draw_range_test(folder, curve, found, run.note)
    for name, lr in found.suggestions.items():
        terminal.say(f"  {name:<12} {lr:.2e}{'  <- recommended' if name == found.recommended else ''}")
    terminal.say(found.reason)
    return found


def _epochs(run: Session, network: nn.Module, max_lr: float, folder: Path) -> Iterator[EpochRecord]:
    """Draws what can be drawn beforehand, then yields an epoch's record as soon as it has ended."""
    config, loader = run.config, session.loader(run, run.config.epochs)
    schedule = {
        "max_lr": max_lr,
        "total_steps": len(loader),
        "pct_start": config.pct_start,
        "anneal": config.anneal,
        "div_factor": config.div_factor,
        "final_div_factor": config.final_div_factor,
    }
    images, labels = loader.dataset[next(iter(loader.sampler))]
    names = [run.train.classes[label] for label in labels]
    report.draw_plan(folder, images.numpy(), names, optim.planned_lrs(**schedule), run.steps_per_epoch, run.note)

    optimizer = session.optimizer(run, network, max_lr)
    with terminal.Progress(config.epochs, len(run.train.labels), run.split) as progress:
        for record in engine.fit(
            network,
            loader,
            *session.evaluation_tensors(run),
            optimizer,
            optim.one_cycle(optimizer, **schedule),
            session.criterion(run),
            run.runtime,
            epochs=config.epochs,
            watch=progress.watch,
        ):
            progress.report(record)
            yield record


def _keep(record: EpochRecord, history: Sequence[EpochRecord], run: Session, network: nn.Module, folder: Path) -> None:
    """Writes an epoch down and saves its weights, unless it went astray: the last good ones stay."""
    outputs.append_row(folder / "history.csv", _named(record, run.split))
    if not math.isfinite(record.train_loss + record.eval_loss):
        raise TrainingError(
            f"epoch {record.epoch}: the loss is no longer a number; --max-lr is the first thing to lower, and "
            f"scripts/find_lr.py finds one. {folder} holds the epochs before"
        )
    state = {
        "model": network.state_dict(),
        "epoch": record.epoch,
        f"{run.split}_accuracy": record.eval_accuracy,
        "dataset": run.dataset,
        "classes": list(run.train.classes),
        "config": run.config.to_json(),
    }
    checkpoint.save(folder / "last.pt", state)
    if all(record.eval_accuracy > earlier.eval_accuracy for earlier in history):
        checkpoint.save(folder / "best.pt", state)


def _show(
    run: Session, network: nn.Module, history: Sequence[EpochRecord], summary: dict[str, Any], folder: Path
) -> None:
    """Draws the results of the last epoch that ended, and says what it all came to."""
    network.load_state_dict(checkpoint.load(folder / "last.pt")["model"])  # a stopped epoch has moved on from it
    images, _ = session.evaluation_tensors(run)
    probabilities = engine.predict(network, images, run.runtime).softmax(1).cpu().numpy()
    report.draw_results(folder, history, run.evaluation, run.split, probabilities, run.note)
    terminal.say(
        f"{summary['status']} after epoch {summary['epochs']}: {run.dataset}, {run.split} accuracy "
        f"{summary[f'final_{run.split}_accuracy']:.2%} (best {summary[f'best_{run.split}_accuracy']:.2%} in epoch "
        f"{summary['best_epoch']}), {summary['train_seconds']:,.1f} s of training steps, "
        f"{summary['images_per_second']:,.0f} images/s"
    )
    terminal.say(f"see {folder / 'curves.png'}")


def _named(record: EpochRecord, split: str) -> dict[str, float]:
    """A record under the name of its evaluation images: a held-out figure is never called a test figure."""
    return {key.replace("eval_", f"{split}_"): value for key, value in asdict(record).items()}


def _summary(
    run: Session, history: Sequence[EpochRecord], max_lr: float, status: str, parameters: int
) -> dict[str, Any]:
    last = history[-1]
    best = max(history, key=lambda record: record.eval_accuracy)  # the first of equals
    train_seconds = sum(record.train_seconds for record in history)
    return {
        "status": status,
        "dataset": run.dataset,
        "epochs": last.epoch,
        "parameters": parameters,
        "seed": run.config.seed,
        "max_lr": max_lr,
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
        "device": str(run.runtime.device),
        "precision": run.runtime.precision,
        "workers": run.workers,
        **outputs.provenance(run.runtime.device),
    }
