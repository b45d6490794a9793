"""The two things the package does, from a `Config` to files in a run folder. The only file that knows all others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader

from s10_resnet import checkpoint, data, engine, lr_finder, model, optim, outputs, report, runtime, terminal
from s10_resnet.batches import AugmentedBatches, Plans, train_loader
from s10_resnet.config import Config
from s10_resnet.data import Split
from s10_resnet.engine import EpochRecord
from s10_resnet.errors import InputError, TrainingError
from s10_resnet.transforms import MEAN, STD

STATUS = {type(None): "completed", KeyboardInterrupt: "interrupted", TrainingError: "failed"}


class Setup(NamedTuple):
    """What a config comes to on this machine. ``split`` names the evaluation images: ``test`` or ``val``."""

    runtime: runtime.Runtime
    workers: int
    dataset: str
    train: Split
    evaluation: Split
    split: str

    @property
    def note(self) -> str:
        """What every plot's title ends with: nothing, or that the data is the stand-in."""
        return " (synthetic data)" if self.dataset == "synthetic" else ""


def train(config: Config) -> dict[str, Any]:
    """Trains the network and leaves records, weights and plots in a new run folder.

    Returns:
        The content of ``summary.json``; accuracies are fractions of 1.

    Raises:
        InputError: For settings that do not fit the machine or the data; nothing has been written then.
        TrainingError: If the loss stops being a number, or ``max_lr="auto"`` finds none.
        KeyboardInterrupt: After Ctrl-C, once everything of the finished epochs has been written.
    """
    setup = _set_up(config)
    folder = _make_folder(config, setup, "train")
    if config.max_lr == "auto":
        found = _find_lr(config, setup, folder)
        if found.max_lr is None:
            raise TrainingError(f"--max-lr auto: {found.reason}")
        config = replace(config, max_lr=found.max_lr)

    network = _network(config, setup)
    terminal.say(f"{model.count_parameters(network):,} parameters, max LR {config.max_lr:.3g}")
    history: list[EpochRecord] = []
    stop: BaseException | None = None
    try:
        for record in _epochs(config, setup, network, folder):
            _keep(record, history, config, setup, network, folder)
            history.append(record)
    except (KeyboardInterrupt, TrainingError) as error:
        stop = error
    summary = _finish(config, setup, network, history, folder, STATUS[type(stop)]) if history else {}
    if stop is not None:
        raise stop
    return summary


def search_lr(config: Config) -> lr_finder.Suggestion:
    """Runs the learning-rate range test and leaves its curve and suggestions in a new run folder.

    Raises:
        InputError: For settings that do not fit the machine or the data; nothing has been written then.
        TrainingError: If the curve has no minimum; the folder holds it.
    """
    setup = _set_up(config)
    folder = _make_folder(config, setup, "find_lr")
    found = _find_lr(config, setup, folder)
    if found.max_lr is None:
        raise TrainingError(found.reason)
    flags = replace(config, max_lr=found.max_lr, name="").to_cli()
    terminal.say(f"next: python scripts/train.py {flags}")
    return found


def _set_up(config: Config) -> Setup:
    run = runtime.start(config.device, config.precision)
    workers = runtime.default_workers(run.device) if config.workers == "auto" else config.workers
    training, evaluation, dataset = data.load(config.dataset, config.data_dir)
    split = "test"
    if config.val_size:
        training, evaluation = data.hold_out(training, config.val_size)
        split = "val"
    if config.limit:
        training, evaluation = training.take(slice(config.limit)), evaluation.take(slice(config.limit // 5))
    if config.batch_size > len(training.labels):
        raise InputError(
            f"--batch-size {config.batch_size}: must be at most the number of training images, {len(training.labels)}"
        )
    return Setup(run, workers, dataset, training, evaluation, split)


def _make_folder(config: Config, setup: Setup, command: str) -> Path:
    substituted = setup.dataset != "cifar10" and config.dataset == "auto"
    prefix = f"{command}-synthetic" if setup.dataset == "synthetic" else command
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
        f"{setup.dataset}: {len(setup.train.labels):,} training and {len(setup.evaluation.labels):,} {setup.split} "
        f"images; {setup.runtime.device}, {setup.runtime.precision}, {setup.workers} workers"
    )
    return folder


def _network(config: Config, setup: Setup) -> nn.Module:
    torch.manual_seed(config.seed)
    network = model.build_network(MEAN, STD, classes=len(setup.train.classes), logit_scale=config.logit_scale)
    return network.to(setup.runtime.device)


def _optimizer(config: Config, network: nn.Module, lr: float) -> torch.optim.Adam:
    return optim.adam(network, lr=lr, betas=config.optimizer_betas, weight_decay=config.weight_decay)


def _criterion(config: Config) -> nn.Module:
    return nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)


def _loader(config: Config, setup: Setup, epochs: int) -> DataLoader:
    dataset = AugmentedBatches(setup.train, crop_padding=config.crop_padding, flip=config.flip, cutout=config.cutout)
    plans = Plans(len(setup.train.labels), config.batch_size, epochs, config.seed)
    return train_loader(dataset, plans, workers=setup.workers, pin_memory=setup.runtime.device.type == "cuda")


def _find_lr(config: Config, setup: Setup, folder: Path) -> lr_finder.Suggestion:
    network = _network(config, setup)
    steps_per_epoch = math.ceil(len(setup.train.labels) / config.batch_size)
    curve = lr_finder.range_test(
        network,
        _loader(config, setup, epochs=math.ceil(config.finder_steps / steps_per_epoch)),
        _optimizer(config, network, lr=config.finder_start_lr),
        _criterion(config),
        setup.runtime,
        start_lr=config.finder_start_lr,
        end_lr=config.finder_end_lr,
        steps=config.finder_steps,
        watch=partial(terminal.range_test_bar, total=config.finder_steps),
    )
    found = lr_finder.suggest(curve)
    for lr, loss, level in zip(curve.lrs, curve.losses, lr_finder.smooth(curve), strict=True):
        outputs.append_row(folder / "lr_finder.csv", {"lr": lr, "loss": loss, "smoothed_loss": level})
    content = {
        "recommended_max_lr": found.max_lr,
        "reason": found.reason,
        "suggestions": found.suggestions,
        "dataset": setup.dataset,
        "config": config.to_json(),
        **outputs.provenance(setup.runtime.device),
    }
    outputs.write_json(folder / "lr_finder.json", content)
    report.draw_range_test(folder, curve, found, setup.note)
    for name, lr in found.suggestions.items():
        terminal.say(f"  {name:<12} {lr:.2e}{'  <- recommended' if name == found.recommended else ''}")
    terminal.say(found.reason)
    return found


def _epochs(config: Config, setup: Setup, network: nn.Module, folder: Path) -> Iterator[EpochRecord]:
    """Draws what can be drawn beforehand, then yields an epoch's record as soon as it has ended."""
    device = setup.runtime.device
    loader = _loader(config, setup, config.epochs)
    schedule = {
        "max_lr": config.max_lr,
        "total_steps": len(loader),
        "pct_start": config.pct_start,
        "anneal": config.anneal,
        "div_factor": config.div_factor,
        "final_div_factor": config.final_div_factor,
    }
    images, labels = loader.dataset[next(iter(loader.sampler))]
    names = [setup.train.classes[label] for label in labels]
    lrs = optim.planned_lrs(**schedule)
    report.draw_plan(folder, images.numpy(), names, lrs, len(lrs) // config.epochs, setup.note)

    optimizer = _optimizer(config, network, lr=config.max_lr)
    progress = terminal.Progress(config.epochs, len(setup.train.labels), setup.split)
    records = engine.fit(
        network,
        loader,
        torch.from_numpy(setup.evaluation.images).to(device),
        torch.from_numpy(setup.evaluation.labels).to(device),
        optimizer,
        optim.one_cycle(optimizer, **schedule),
        _criterion(config),
        setup.runtime,
        epochs=config.epochs,
        watch=progress.watch,
    )
    with progress:
        for record in records:
            progress.report(record)
            yield record


def _keep(
    record: EpochRecord,
    history: list[EpochRecord],
    config: Config,
    setup: Setup,
    network: nn.Module,
    folder: Path,
) -> None:
    """Writes an epoch down and saves its weights, unless it went astray: the last good ones stay."""
    outputs.append_row(folder / "history.csv", _named(record, setup.split))
    if not math.isfinite(record.train_loss + record.eval_loss):
        raise TrainingError(
            f"epoch {record.epoch}: the loss is no longer a number; --max-lr {config.max_lr:g} is the first thing to "
            f"lower, and scripts/find_lr.py finds one. {folder} holds the epochs before"
        )
    state = {
        "model": network.state_dict(),
        "epoch": record.epoch,
        f"{setup.split}_accuracy": record.eval_accuracy,
        "dataset": setup.dataset,
        "classes": list(setup.train.classes),
        "config": config.to_json(),
    }
    checkpoint.save(folder / "last.pt", state)
    if all(record.eval_accuracy > earlier.eval_accuracy for earlier in history):
        checkpoint.save(folder / "best.pt", state)


def _finish(
    config: Config, setup: Setup, network: nn.Module, history: list[EpochRecord], folder: Path, status: str
) -> dict[str, Any]:
    """Writes the summary, draws the results of the last epoch that ended, and says what it all came to."""
    split = setup.split
    summary = _summary(config, setup, network, history, status)
    outputs.write_json(folder / "summary.json", summary)
    network.load_state_dict(checkpoint.load(folder / "last.pt")["model"])  # a stopped epoch has moved on from it
    images = torch.from_numpy(setup.evaluation.images).to(setup.runtime.device)
    probabilities = engine.predict(network, images, setup.runtime).softmax(1).cpu().numpy()
    report.draw_results(folder, history, setup.evaluation, split, probabilities, setup.note)
    terminal.say(
        f"{status}: {setup.dataset}, {summary['epochs']} epochs, {split} accuracy "
        f"{summary[f'final_{split}_accuracy']:.2%} (best {summary[f'best_{split}_accuracy']:.2%} in epoch "
        f"{summary['best_epoch']}), {summary['train_seconds']:,.1f} s of training steps, "
        f"{summary['images_per_second']:,.0f} images/s"
    )
    terminal.say(f"see {folder / 'curves.png'}")
    return summary


def _named(record: EpochRecord, split: str) -> dict[str, float]:
    """A record under the name of its evaluation images: a held-out figure is never called a test figure."""
    return {key.replace("eval_", f"{split}_"): value for key, value in asdict(record).items()}


def _summary(
    config: Config, setup: Setup, network: nn.Module, history: list[EpochRecord], status: str
) -> dict[str, Any]:
    last = history[-1]
    best = max(history, key=lambda record: record.eval_accuracy)  # the first of equals
    train_seconds = sum(record.train_seconds for record in history)
    return {
        "status": status,
        "dataset": setup.dataset,
        "epochs": last.epoch,
        "parameters": model.count_parameters(network),
        "seed": config.seed,
        "max_lr": config.max_lr,
        "final_train_accuracy": last.train_accuracy,
        f"final_{setup.split}_accuracy": last.eval_accuracy,
        "best_train_accuracy": max(record.train_accuracy for record in history),
        f"best_{setup.split}_accuracy": best.eval_accuracy,
        "best_epoch": best.epoch,
        "final_train_loss": last.train_loss,
        f"final_{setup.split}_loss": last.eval_loss,
        "train_images": len(setup.train.labels),
        f"{setup.split}_images": len(setup.evaluation.labels),
        "train_seconds": train_seconds,
        "eval_seconds": sum(record.eval_seconds for record in history),
        "images_per_second": last.epoch * len(setup.train.labels) / train_seconds,
        "device": str(setup.runtime.device),
        "precision": setup.runtime.precision,
        "workers": setup.workers,
        **outputs.provenance(setup.runtime.device),
    }
