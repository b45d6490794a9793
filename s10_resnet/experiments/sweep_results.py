"""What a sweep came to: a row a training, what each variant is worth, the table and the picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

from s10_resnet.config import Config
from s10_resnet.evaluation.tta import VIEWS
from s10_resnet.experiments.statistics import describe, difference
from s10_resnet.experiments.variants import AS_GIVEN, Variant
from s10_resnet.options import Sweep
from s10_resnet.reporting import plots, sweep_plots
from s10_resnet.training.session import Session
from s10_resnet.utils import console as terminal

FILE = "sweep.json"


class Row(TypedDict):
    """What one training came to, after the last epoch; accuracies are fractions of 1, and NaN if it failed.

    ``failed`` says why, or nothing.
    """

    variant: str
    seed: int
    failed: str
    max_lr: float
    train_accuracy: float
    accuracy_none: float
    accuracy_flip: float
    accuracy_six: float
    train_seconds: float


def content(settings: Sweep, run: Session, variants: Sequence[Variant], rows: Sequence[Row]) -> dict[str, Any]:
    """What ``sweep.json`` holds.

    Returns:
        ``settings``; ``variants``, for each its label, settings that differ from those given, trainings that failed,
        `s10_resnet.experiments.statistics.describe` of the accuracies by views, and
        `s10_resnet.experiments.statistics.difference` of the plain one to that of the recipe as given; ``runs``,
        a `Row` each; the environment.
    """
    told = []
    for variant in variants:
        own = [row for row in rows if row["variant"] == variant.label]
        good, reference = _good(own), _good([row for row in rows if row["variant"] == AS_GIVEN])
        accuracy = {views: [row[f"accuracy_{views}"] for row in good] for views in VIEWS}
        told.append(
            {
                "label": variant.label,
                "changes": _changes(variant.config, variants[0].config),
                "failed": len(own) - len(good),
                "statistics": {views: describe(values) for views, values in accuracy.items()} if good else None,
                "difference": difference(accuracy["none"], [row["accuracy_none"] for row in reference])
                if good and reference and variant.label != AS_GIVEN
                else None,
            }
        )
    return {
        "settings": settings.to_json(),
        "variants": told,
        "runs": [{name: _plain(value) for name, value in row.items()} for row in rows],
        "dataset": run.dataset,
        "split": run.split,
        "evaluation_images": len(run.evaluation.labels),
        **run.environment,
    }


def _good(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not row["failed"]]


def _changes(config: Config, base: Config) -> dict[str, Any]:
    here, there = config.to_json(), base.to_json()
    return {name: value for name, value in here.items() if value != there[name]}


def report(folder: Path, content: Mapping[str, Any], note: str) -> None:
    """The picture, and last the table."""
    what = f"{content['evaluation_images']:,} {content['split']} images"
    plots.save(sweep_plots.draw(content, title=f"Accuracy on the {what}{note}"), folder / "sweep.png")
    terminal.say(f"see {folder / FILE} and sweep.png")
    terminal.say(f"\naccuracy after the last epoch in %, mean ± standard deviation, {content['dataset']}, {what}")
    terminal.say("\n".join(terminal.aligned(list(_table(content)))))


def _table(content: Mapping[str, Any]) -> Iterator[list[str]]:
    yield ["settings", "n", *VIEWS, f"none, against {AS_GIVEN} (95 %)", "failed"]
    for variant in content["variants"]:
        statistics, gap = variant["statistics"], variant["difference"]
        cells = ["-"] * (1 + len(VIEWS))
        if statistics:
            cells = [str(statistics["none"]["n"]), *(_spread(statistics[views]) for views in VIEWS)]
        yield [variant["label"], *cells, _gap(gap) if gap else "-", str(variant["failed"])]


def _spread(one: Mapping[str, Any]) -> str:
    return f"{100 * one['mean']:.2f}" + ("" if one["std"] is None else f" ± {100 * one['std']:.2f}")


def _gap(gap: Mapping[str, Any]) -> str:
    interval = gap["interval"]
    shown = "" if interval is None else f" ({100 * interval[0]:+.2f} to {100 * interval[1]:+.2f})"
    return f"{100 * gap['difference']:+.2f}{shown}"


def outcome(row: Row) -> str:
    """A training's result in a line."""
    if row["failed"]:
        return f"failed: {row['failed']}"
    shown = ", ".join(f"{100 * row[f'accuracy_{views}']:.2f} {views}" for views in VIEWS)
    return f"{shown}; max LR {row['max_lr']:.3g}, {row['train_seconds']:.1f} s"


def _plain(value: Any) -> Any:
    """The same for JSON, which has no word for NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def revived(row: Any) -> Row:
    """A row from JSON.

    Raises:
        TypeError: For anything else than a row.
    """
    if not isinstance(row, dict):
        raise TypeError
    row = {name: math.nan if value is None else value for name, value in row.items()}
    if {name: type(value) for name, value in row.items()} != get_type_hints(Row):
        raise TypeError
    if not row["failed"] and not all(math.isfinite(row[f"accuracy_{views}"]) for views in VIEWS):
        raise TypeError
    return row
