"""Compares runs: their results and settings in two tables, their curves in one figure. Reads text files only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from s10_resnet.config import CompareConfig, flag, printable
from s10_resnet.errors import InputError
from s10_resnet.experiments.statistics import summarize
from s10_resnet.reporting import plots
from s10_resnet.reporting.formatting import plural
from s10_resnet.training.run_files import CONFIG, HISTORY, SUMMARY, read_config, read_history, read_summary
from s10_resnet.utils.console import format_table, logger, warn_on_error
from s10_resnet.utils.io import create_run_dir, read_json, write_json

# Settings without influence on the results; runs that differ in nothing else are repetitions of each other.
IGNORED = {"seed", "name", "output_dir", "data_dir", "device", "workers", "checkpoint_every_minutes", "tensorboard"}
ENVIRONMENT = ("device", "precision", "world_size", "hardware")  # what times depend on
CURVES = ("train_accuracy", "eval_accuracy", "train_loss", "eval_loss")
COLUMNS = {  # of the table: heading, factor and digits
    "final_eval_accuracy": ("accuracy, %", 100, 2),
    "best_eval_accuracy": ("best, %", 100, 2),
    "final_eval_loss": ("loss", 1, 4),
    "train_seconds": ("seconds", 1, 1),
    "images_per_second": ("images/s", 1, 0),
}


@dataclass(frozen=True)
class Run:
    """What the text files of a run folder say."""

    path: Path
    config: dict[str, Any]  # all settings, with the data set that "auto" came to
    history: dict[str, np.ndarray]  # the columns of history.csv, float [E], at least one epoch
    summary: dict[str, Any]  # the content of summary.json; empty until the training ends

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that influence the results."""
        return {name: value for name, value in self.config.items() if name not in IGNORED}

    def results(self) -> dict[str, float]:
        """Returns the results, under the names that they have in ``summary.json``."""
        history = self.history
        return {
            **{f"final_{name}": float(history[name][-1]) for name in CURVES},
            "best_eval_accuracy": float(history["eval_accuracy"].max()),
            "best_epoch": int(history["eval_accuracy"].argmax()) + 1,
            "train_seconds": float(history["train_seconds"].sum()),
            "images_per_second": float(np.average(history["images_per_second"], weights=history["train_seconds"])),
        }


def compare(config: CompareConfig) -> dict[str, Any]:
    """Compares runs: prints two tables, and writes ``comparison.json`` and ``curves.png`` into a new folder.

    Runs whose settings differ in the seed only, or in what does not influence the results, form a group.

    Returns:
        The content of ``comparison.json``: ``groups``, each with its ``statistics`` (see
        `s10_resnet.experiments.statistics.summarize`) and the results of its ``runs``; ``differing_settings``, with a
        value per group; ``warnings``. Accuracies are from 0 to 1.

    Raises:
        InputError: For a folder that holds no run, for damaged files, and for fewer than two finished runs.
            Nothing has been written then.
    """
    by_settings: dict[str, list[Run]] = {}
    for run in _read_runs(config.runs):
        by_settings.setdefault(json.dumps(run.settings), []).append(run)
    groups = list(by_settings.values())
    content = _summarize(groups)
    run_dir = create_run_dir(config.output_dir, config.name, "compare")
    write_json(run_dir / "comparison.json", content)
    with warn_on_error("a plot could not be drawn"):
        _plot_curves(run_dir / "curves.png", groups, content["groups"])

    logger.info(f"evaluated on {', '.join(dict.fromkeys(group['evaluated_on'] for group in content['groups']))}\n")
    _print_table([_result_cells(group) for group in content["groups"]])
    if content["differing_settings"]:
        _print_table([_setting_cells(group, content["differing_settings"]) for group in content["groups"]])
    else:
        logger.info("no setting differs but for the seed\n")
    for warning in content["warnings"]:
        logger.warning(warning)
    logger.info(f"see {run_dir / 'curves.png'} and comparison.json")
    return content


def _read_runs(paths: Sequence[Path]) -> list[Run]:
    """Returns the runs in the order they were given, each once; unfinished ones are left out."""
    found = {folder.resolve(): folder for path in paths for folder in _find_runs(path)}
    runs = []
    for path in found.values():
        history = read_history(path) if (path / HISTORY).exists() else []
        config = read_config(path)
        if "epochs" not in read_json(path / CONFIG):  # a range test
            continue
        if len(history) == config["epochs"]:
            summary = read_summary(path) if (path / SUMMARY).exists() else {}
            config["dataset"] = summary.get("dataset", config["dataset"])
            columns = {name: np.array([epoch[name] for epoch in history]) for name in history[0]}
            runs.append(Run(path, config, columns, summary))
        else:
            epochs = plural(config["epochs"], "epoch")
            logger.warning(f"{printable(str(path), 200)}: is unfinished, with {len(history)} of {epochs}: left out")
    if len(runs) < 2:
        given = " ".join(map(str, paths))
        raise InputError(f"RUN {given}: must be at least two finished runs; found {len(runs)}")
    return runs


def _find_runs(path: Path) -> list[Path]:
    try:
        # The run folders of a sweep may lie in a folder per variant.
        runs = sorted(file.parent for pattern in ("", "*/", "*/*/") for file in path.glob(f"{pattern}{CONFIG}"))
    except OSError as error:
        raise InputError(f"RUN {path}: cannot be read ({error.strerror})") from None
    if not runs:
        raise InputError(f"RUN {path}: must be a run folder, or a folder of run folders")
    return runs


def _summarize(groups: Sequence[list[Run]]) -> dict[str, Any]:
    """Returns the content of ``comparison.json``."""
    labels = _labels(groups)
    settings = {name: [runs[0].config[name] for runs in groups] for name in groups[0][0].settings}
    differing = {name: values for name, values in settings.items() if any(value != values[0] for value in values)}
    summaries = []
    for label, runs in zip(labels, groups, strict=True):
        config, results = runs[0].config, [run.results() for run in runs]
        summaries.append(
            {
                "label": label,
                "n": len(runs),
                "evaluated_on": f"{config['dataset']} {'val' if config['val_size'] else 'test'}",
                "statistics": {name: summarize([values[name] for values in results]) for name in results[0]},
                "runs": [
                    {"path": str(run.path), "seed": run.config["seed"], "epochs": run.config["epochs"], **values}
                    for run, values in zip(runs, results, strict=True)
                ],
                "settings": runs[0].settings,
            }
        )
    warnings = _warnings(groups, labels, differing)
    return {"groups": summaries, "differing_settings": differing, "warnings": warnings}


def _labels(groups: Sequence[list[Run]]) -> list[str]:
    """Returns the folder name of each group's first run, with its parents as far as the names are the same."""
    paths = [runs[0].path.resolve().parts for runs in groups]
    depth = 1
    while len({path[-depth:] for path in paths}) < len(paths):
        depth += 1
    return [printable("/".join(path[-depth:]), 60) for path in paths]


def _warnings(groups: Sequence[list[Run]], labels: Sequence[str], differing: Mapping[str, Any]) -> list[str]:
    runs = [run for group in groups for run in group]
    known = {name: [run.summary[name] for run in runs if name in run.summary] for name in ENVIRONMENT}
    incomparable = {
        "results": [flag(name) for name in ("dataset", "val_size", "max_train_samples") if name in differing],
        "losses": ["--label-smoothing"] if "label_smoothing" in differing else [],
        "times": [name for name, values in known.items() if any(value != values[0] for value in values)],
    }
    warnings = [
        f"the runs differ in {', '.join(names)}: {what} do not compare" for what, names in incomparable.items() if names
    ]
    for label, group in zip(labels, groups, strict=True):
        if len({run.config["seed"] for run in group}) < len(group):
            warnings.append(f"{label}: has runs with the same seed, which are not independent of each other")
    return warnings


def _result_cells(group: Mapping[str, Any]) -> dict[str, str]:
    cells = {"run": group["label"], "n": str(group["n"]), "epochs": str(group["settings"]["epochs"])}
    for name, (heading, factor, digits) in COLUMNS.items():
        statistics = [group["statistics"][name][key] for key in ("mean", "std")]
        cells[heading] = " ± ".join(f"{factor * value:,.{digits}f}" for value in statistics if value is not None)
    return cells


def _setting_cells(group: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    values = {flag(name): group["settings"][name] for name in names}
    shown = {name: " ".join(map(str, v)) if isinstance(v, list) else str(v) for name, v in values.items()}
    return {"run": group["label"], **shown}


def _print_table(groups: Sequence[Mapping[str, str]]) -> None:
    """Prints a row per group, or if only that fits the terminal a column per group."""
    rows = [list(groups[0]), *(list(cells.values()) for cells in groups)]
    upright, sideways = format_table(rows), format_table(list(zip(*rows, strict=True)))
    lines = sideways if len(sideways[0]) <= shutil.get_terminal_size().columns < len(upright[0]) else upright
    logger.info("\n".join(lines) + "\n")


def _plot_curves(path: Path, groups: Sequence[list[Run]], summaries: Sequence[Mapping[str, Any]]) -> None:
    curves = []
    for runs, summary in zip(groups, summaries, strict=True):
        values = {name: np.stack([run.history[name] for run in runs]) for name in CURVES}
        curves.append((summary["label"], values))
    evaluated_on = sorted({summary["evaluated_on"] for summary in summaries})
    split = " or ".join(sorted({text.split()[1] for text in evaluated_on}))
    title = f"Loss and accuracy on {', '.join(evaluated_on)}"
    plots.save(plots.plot_comparison(curves, split=split, title=title), path)
