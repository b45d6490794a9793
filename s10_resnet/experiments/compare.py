"""Runs side by side: what each came to, which settings tell them apart, and their curves over each other.

It reads the text files of a run and never its weights. They may be a stranger's, so they are checked before use, and
what is shown of them cannot be taken for a formula, Markdown or the control codes of a terminal.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from s10_resnet.experiments import runs
from s10_resnet.experiments.runs import CURVES, DASH, ENVIRONMENT, Run, shown
from s10_resnet.options import Comparison
from s10_resnet.reporting import plots
from s10_resnet.settings import flag
from s10_resnet.utils import console as terminal
from s10_resnet.utils import outputs, signals
from s10_resnet.utils.io import write_whole

OF_SPLIT = ("final_accuracy", "best_accuracy", "final_loss")
# Figures of the table, by their name without the split: heading, factor, digits.
SHOWN = {
    "final_accuracy": ("accuracy, %", 100, 2),
    "best_accuracy": ("best, %", 100, 2),
    "final_loss": ("loss", 1, 4),
    "train_seconds": ("train s", 1, 1),
    "images_per_second": ("images/s", 1, 0),
}


@dataclass(frozen=True)
class Group:
    """Runs that are repetitions of each other, at least one."""

    label: str
    runs: list[Run]

    def figure(self, name: str) -> dict[str, Any]:
        """Mean, sample standard deviation (NaN of a single run) and the value of each run."""
        values = [run.figures[name] for run in self.runs]
        return {
            "mean": float(np.mean(values)),
            "std": float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
            "values": values,
        }

    def curve(self, name: str) -> np.ndarray:
        """One of `CURVES` of all n runs, float ``[n, E]``: up to the last epoch that all have, or n would not be n."""
        last = min(run.epochs for run in self.runs)
        return np.stack([run.curves[name][:last] for run in self.runs])

    @property
    def title(self) -> str:
        """The label, with what else than completed its runs are."""
        odd = Counter(run.status for run in self.runs if run.status != "completed")
        if len(self.runs) == 1:
            marks = ", ".join(odd)
        else:
            marks = ", ".join(f"{number} of {len(self.runs)} {status}" for status, number in odd.items())
        return f"{self.label} ({marks})" if marks else self.label


@signals.heeded()
def compare(options: Comparison) -> dict[str, Any]:
    """Compares runs; prints two tables and leaves them in a new folder with the curves and all the figures.

    Returns:
        The content of ``comparison.json``: ``groups``, ``differing_settings`` and ``warnings``. Accuracies are
        fractions of 1, and what is not known is None.

    Raises:
        InputError: For a folder that is no run, has no epoch yet or is damaged, and for fewer than two runs. Nothing
            has been written then.
    """
    groups = _grouped(runs.read_all(options.runs))
    folder = outputs.make_run_folder(options.output_dir, options.name, "compare")
    differing = _differing(groups)
    warnings = _warnings(groups, differing)
    results, settings = _results(groups), _settings(groups, differing)
    for table in results, settings:
        if len(table) > 1:
            terminal.say("\n".join([*terminal.aligned(table), ""]))
    if len(settings) == 1:
        terminal.say("no setting differs but for the seed")
    for warning in warnings:
        terminal.complain(f"warning: {warning}")

    content = {
        "groups": [_content(group) for group in groups],
        "differing_settings": {
            name: {g.label: g.runs[0].settings[name] for g in groups if name in g.runs[0].settings}
            for name in differing
        },
        "warnings": warnings,
    }
    _write(folder, content, groups, [table for table in (results, settings) if len(table) > 1])
    return content


def _grouped(runs: Iterable[Run]) -> list[Group]:
    """Repetitions together, in the order of the first of each, under labels that differ."""
    groups: list[list[Run]] = []
    for run in runs:
        repeated = next((group for group in groups if _same(group[0].settings, run.settings)), None)
        if repeated:
            repeated.append(run)
        else:
            groups.append([run])
    families = Counter(parent for group in groups for parent in {run.parent for run in group})
    labels = [_label(group, families) for group in groups]
    twice = {label for label, number in Counter(labels).items() if number > 1}
    unique: list[str] = []
    for label, group in zip(labels, groups, strict=True):
        text = shown(f"{_name(_absolute(group[0].path).parent)}/{label}" if label in twice else label)
        numbered = (text if number == 1 else f"{text} #{number}" for number in count(1))
        unique.append(next(label for label in numbered if label not in unique))
    return [Group(label, group) for label, group in zip(unique, groups, strict=True)]


def _label(runs: list[Run], families: Mapping[Path | None, int]) -> str:
    parents = {run.parent for run in runs}
    parent = parents.pop()
    if len(runs) > 1 and not parents and parent is not None and families[parent] == 1:
        return _name(parent)
    names = [_name(run.path) for run in runs]
    prefix = _prefix(names)
    if any(name[len(prefix) :][:1].isdigit() for name in names):
        prefix = re.sub(r"\d+$", "", prefix)  # of seed-10 and seed-11 the 1 says nothing
    if len(runs) > 1:
        prefix = prefix.rstrip("-_. ")
    return prefix or f"{names[0]} and {len(names) - 1} more"


def _prefix(names: Sequence[str]) -> str:
    alike = [len(set(letters)) == 1 for letters in zip(*names, strict=False)]
    return names[0][: [*alike, False].index(False)]


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)


def _equal(one: Any, other: Any) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)  # True is no 1, but 1.0 is


def _differing(groups: Sequence[Group]) -> list[str]:
    """Names of the settings that are not the same in all groups, in the order of the settings."""
    every = [group.runs[0].settings for group in groups]
    names = dict.fromkeys(name for settings in every for name in settings)
    return [
        name
        for name in names
        if not all(name in s and name in every[0] and _equal(s[name], every[0][name]) for s in every)
    ]


def _warnings(groups: Sequence[Group], differing: Sequence[str]) -> list[str]:
    warnings = []
    evaluated = dict.fromkeys(f"{group.runs[0].dataset} {group.runs[0].split}" for group in groups)
    resized = [flag(name) for name in ("val_size", "limit") if name in differing]
    if len(evaluated) > 1:
        warnings.append(f"the runs were evaluated on different images ({', '.join(evaluated)}): figures do not compare")
    elif resized:
        warnings.append(f"the runs differ in {' and '.join(resized)}, and so in the images: figures do not compare")
    if "label_smoothing" in differing:
        warnings.append("the runs differ in --label-smoothing, which is part of the loss: losses do not compare")
    for group in groups:
        seeds = Counter(str(run.seed) for run in group.runs if run.seed is not None)
        again = [shown(seed) for seed, number in seeds.items() if number > 1]
        if again:
            warnings.append(
                f"{group.label} has runs of the same seed ({', '.join(again)}): they are not independent of each other"
            )
        if len({run.epochs for run in group.runs}) > 1:
            warnings.append(
                f"{group.label} has runs of different lengths: its figures mix them, its curves end with the shortest"
            )
    told = [run.environment for group in groups for run in group.runs]
    values = {name: [environment[name] for environment in told if name in environment] for name in ENVIRONMENT}
    changed = [name for name, those in values.items() if any(value != those[0] for value in those)]
    if changed:
        warnings.append(f"the runs differ in {', '.join(changed)}: times do not compare")
    return warnings


def _results(groups: Sequence[Group]) -> list[list[str]]:
    """The head and a row a group."""
    rows = [["run", "n", "evaluated on", "epochs", *(heading for heading, _, _ in SHOWN.values())]]
    for group in groups:
        first = group.runs[0]
        lengths = sorted({run.epochs for run in group.runs})
        epochs = str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
        cells = [_measured(group.figure(name), factor, digits) for name, (_, factor, digits) in SHOWN.items()]
        rows.append([group.title, str(len(group.runs)), f"{first.dataset} {first.split}", epochs, *cells])
    return rows


def _settings(groups: Sequence[Group], differing: Sequence[str]) -> list[list[str]]:
    """The head and a row a setting."""
    rows = [["setting", *(group.label for group in groups)]]
    for name in differing:
        held = [group.runs[0].settings for group in groups]
        rows.append([shown(flag(name)), *(_typed(settings[name]) if name in settings else DASH for settings in held)])
    return rows


def _measured(figure: Mapping[str, Any], factor: int, digits: int) -> str:
    mean, std = (
        f"{factor * value:,.{digits}f}" if math.isfinite(value) else DASH for value in (figure["mean"], figure["std"])
    )
    return mean if len(figure["values"]) == 1 else f"{mean} ± {std}"


def _typed(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return shown(" ".join(map(str, value)) if isinstance(value, list) else str(value))


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [[re.sub(r"([\\`*_|<>\[\]~&$])", r"\\\1", cell) for cell in row] for row in rows]
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, ruler, *body])


def _name(path: Path) -> str:
    return _absolute(path).name or str(path)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link, whose name is the one given


def _content(group: Group) -> dict[str, Any]:
    first = group.runs[0]
    return {
        "label": group.label,
        "n": len(group.runs),
        "dataset": first.dataset,
        "split": first.split,
        "figures": {_told(name, first.split): _plain(group.figure(name)) for name in first.figures},
        "runs": [
            {
                "path": _printable(run.path),
                "seed": run.seed,
                "status": run.status,
                "epochs": run.epochs,
                **{_told(name, run.split): _plain(value) for name, value in run.figures.items()},
            }
            for run in group.runs
        ],
        "settings": first.settings,
    }


def _write(folder: Path, content: Mapping[str, Any], groups: Sequence[Group], tables: Sequence[Any]) -> None:
    everything = [run for group in groups for run in group.runs]
    synthetic = sum(run.dataset == "synthetic" for run in everything)
    note = f" ({'' if synthetic == len(everything) else f'{synthetic} on '}synthetic data)" if synthetic else ""
    figure = plots.comparison(
        [(group.title, {name: group.curve(name) for name in CURVES}) for group in groups],
        split=" or ".join(sorted({run.split for run in everything})),
        title=f"Loss and accuracy of {len(everything)} runs{note}",
    )
    outputs.write_json(folder / "comparison.json", content)
    write_whole(folder / "table.md", "\n".join(map(_markdown, tables)).encode())
    plots.save(figure, folder / "curves.png")
    terminal.say(f"see {folder / 'curves.png'}, comparison.json and table.md")


def _told(name: str, split: str) -> str:
    """A figure's name with what it was measured on, as in ``summary.json``."""
    return f"{name.split('_')[0]}_{split}_{name.split('_')[1]}" if name in OF_SPLIT else name


def _plain(value: Any) -> Any:
    """The same for JSON, which has no word for NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if math.isfinite(value) else None


def _printable(path: Path) -> str:
    return os.fsencode(path).decode(errors="replace")
