"""The same training with several seeds: how far its result depends on chance."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

import torch

from s10_resnet.config import Config
from s10_resnet.errors import InputError
from s10_resnet.evaluation.evaluate import accuracies
from s10_resnet.evaluation.tta import VIEWS
from s10_resnet.experiments.statistics import describe
from s10_resnet.models.pretrained import load_model
from s10_resnet.training import resumption, session
from s10_resnet.utils import console as terminal
from s10_resnet.utils import io as files
from s10_resnet.utils import outputs, signals

FILE = "runs.json"
NEEDED = {"precision", "dataset", "max_lr", "train_seconds", "device"}  # of a summary


class Row(TypedDict):
    """What one run came to.

    Accuracies after the last epoch, fractions of 1, by the views of `s10_resnet.evaluation.tta`.
    """

    seed: int
    folder: str
    dataset: str
    split: str
    accuracy_none: float
    accuracy_flip: float
    accuracy_six: float
    max_lr: float
    train_seconds: float
    device: str


Train = Callable[[Config], dict[str, Any]]
Resume = Callable[[Path, Mapping[str, Any]], dict[str, Any]]


def repeat(config: Config, train: Train, resume: Resume) -> dict[str, Any]:
    """Trains with ``config.runs`` seeds from ``config.seed`` on, one after the other, each in a folder of its own.

    Args:
        config: What to train, and how often.
        train: Trains once.
        resume: Goes on with a training in its folder.

    Returns:
        The content of ``runs.json``: see `carry_out`.

    Raises:
        InputError: Under ``torchrun``, or for settings that do not fit; nothing has been written then.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError(f"--runs {config.runs}: must be 1 under torchrun")
    session.begin(config)  # what does not fit is to be told before there is a folder
    folder = outputs.make_run_folder(config.output_dir, config.name, "runs")
    outputs.write_json(folder / FILE, {"config": config.to_json(), "runs": []})
    return carry_out(config, folder, train, resume, {})


def go_on(folder: Path, asked: Mapping[str, Any], train: Train, resume: Resume) -> dict[str, Any]:
    """Goes on with the runs in a folder where they stopped, in the middle of one or between two.

    Raises:
        InputError: For other settings than those that they were begun with, or a ``runs.json`` that holds none.
    """
    content = outputs.read_json(folder / FILE)
    try:
        config = Config.from_json(content["config"])
        known = {row["seed"]: row for row in content["runs"] if _is_row(row)}
    except (InputError, KeyError, TypeError):
        raise InputError(f"--resume {folder}: {FILE} does not hold the settings of runs") from None
    changed = resumption.differences(config, None, asked)
    if changed:
        raise InputError(f"--resume {folder}: runs cannot go on with other settings: {'; '.join(changed)}")
    config = replace(config, **{name: asked[name] for name in resumption.FREE if name in asked})
    return carry_out(config, folder, train, resume, known)


def carry_out(config: Config, folder: Path, train: Train, resume: Resume, known: Mapping[int, Row]) -> dict[str, Any]:
    """Trains what is not trained yet, and writes ``runs.json`` anew after every run.

    Args:
        config: See `repeat`.
        folder: Of all the runs.
        train: See `repeat`.
        resume: See `repeat`.
        known: The rows of the runs that have been evaluated, by their seed.

    Returns:
        ``config``; ``runs``, a `Row` a run; ``statistics`` of the accuracies by the views they were measured with: see
        `s10_resnet.experiments.statistics.describe`; the environment.
    """
    rows: list[Row] = []
    content: dict[str, Any] = {}
    with files.locked(folder):
        for number, seed in enumerate(terminal.bar(config.seeds, config.runs, "runs", "run"), 1):
            one = replace(config, runs=1, seed=seed, output_dir=folder, name=f"seed-{seed}")
            terminal.say(f"run {number} of {config.runs}: seed {seed}")
            try:
                rows.append(known.get(seed) or _row(one, *_finished(one, train, resume)))
            except signals.Stopped:
                terminal.say(f"python scripts/train.py --resume {folder} goes on with all runs")
                raise
            content = {
                "config": config.to_json(),
                "runs": rows,
                "statistics": {views: describe([row[f"accuracy_{views}"] for row in rows]) for views in VIEWS},
                **outputs.provenance(torch.device(rows[0]["device"])),
            }
            outputs.write_json(folder / FILE, content)
    _say(content)
    terminal.say(f"see {folder / FILE}; python scripts/compare.py {folder} draws the curves")
    return content


def _finished(config: Config, train: Train, resume: Resume) -> tuple[Path, dict[str, Any]]:
    """The folder and the summary of a run, which is trained as far as it is not."""
    begun = _folder(config)
    if begun and not any(begun.iterdir()):  # killed right after it was made
        begun.rmdir()
        begun = None
    if begun is None:
        summary = train(config)
        return _folder(config), summary
    if (begun / "summary.json").is_file():
        summary = outputs.read_json(begun / "summary.json")
        if isinstance(summary, dict) and summary.get("status") == "completed" and summary.keys() >= NEEDED:
            return begun, summary
    return begun, resume(begun, {name: getattr(config, name) for name in resumption.FREE})


def _folder(config: Config) -> Path | None:
    """The run's folder, whether or not the stand-in took the place of CIFAR-10."""
    paths = (config.output_dir / name for name in (config.name, outputs.substitute(config.name)))
    return next(filter(Path.is_dir, paths), None)


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and {name: type(of) for name, of in value.items()} == get_type_hints(Row)


def _row(config: Config, folder: Path, summary: dict[str, Any]) -> Row:
    trained = load_model(folder / "last.pt", config.device, summary["precision"])
    images, labels, _ = session.begin(config).evaluation
    device = trained.runtime.device
    on_device = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
    measured = accuracies(trained.network, *on_device, trained.runtime)
    return Row(
        seed=config.seed,
        folder=folder.name,
        dataset=summary["dataset"],
        split=trained.split,
        **measured,
        max_lr=summary["max_lr"],
        train_seconds=summary["train_seconds"],
        device=summary["device"],
    )


def _say(content: dict[str, Any]) -> None:
    rows = content["runs"]
    table = [["test-time augmentation", "mean", "std", "95 % interval", "every run"]]
    for views, one in content["statistics"].items():
        percents = [f"{100 * value:.2f}" for value in one["values"]]
        spread = ["-", "-"] if one["std"] is None else [f"{100 * one['std']:.2f}", _interval(*one["interval"])]
        table.append([views, f"{100 * one['mean']:.2f}", *spread, " ".join(percents)])
    terminal.say(
        f"accuracy after the last epoch in %, {rows[0]['dataset']}, {rows[0]['split']} images, n = {len(rows)}"
    )
    terminal.say("\n".join([*terminal.aligned(table), ""]))


def _interval(low: float, high: float) -> str:
    return f"{100 * low:.2f} to {100 * high:.2f}"
