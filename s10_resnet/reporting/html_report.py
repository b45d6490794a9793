"""A run as one web page: its figures, curves to point at, and its images, in a file that fetches nothing.

Everything is drawn here and in ``templates/report.html``, so that it shows without JavaScript, too; the page's script
only adds the values under the pointer. Jinja escapes whatever comes from outside, and the page denies itself the
network.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from s10_resnet.config import Config
from s10_resnet.evaluation.metrics import confusion_matrix
from s10_resnet.reporting import charts
from s10_resnet.reporting.charts import Chart
from s10_resnet.training.state import EpochRecord
from s10_resnet.utils.io import write_whole

GRID_IMAGES = 32
MAX_ROWS = 1_000  # of the table of epochs
DATASETS = {"cifar10": "CIFAR-10", "synthetic": "the synthetic stand-in"}
NOTHING = "\N{EN DASH}"


class Picture(NamedTuple):
    """An image as a data URI, what it shows in words, and the lines below it."""

    uri: str
    alt: str
    caption: Sequence[str]


class ClassResult(NamedTuple):
    """What became of the images of one class; ``share`` of them, from 0 to 100, was right."""

    name: str
    images: int
    right: int
    share: float
    accuracy: str
    taken_for: str
    cells: list[tuple[int, float]]  # images taken for each class, and how strongly to colour that, from 0 to 1


class Setting(NamedTuple):
    """A row of the table of settings."""

    name: str
    value: str
    default: str
    changed: bool
    about: str


def write(
    path: Path,
    *,
    summary: Mapping[str, Any],
    config: Mapping[str, Any],
    history: Sequence[EpochRecord],
    split: str,
    lrs: Sequence[float],
    steps_per_epoch: int,
    images: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    probabilities: np.ndarray,
    samples: np.ndarray,
    sample_names: Sequence[str],
) -> None:
    """Writes the page, whole, into a folder that exists.

    Args:
        path: The file.
        summary: The content of ``summary.json``.
        config: The content of ``config.json``; the run's name is in it, or else that of the file's folder.
        history: The epochs, at least one.
        split: What the evaluation images are called, ``test`` or ``val``.
        lrs: Learning rate of every step, at least one.
        steps_per_epoch: Steps in an epoch.
        images: The evaluation images, uint8 ``[N, H, W, 3]``.
        labels: Their classes, int64 ``[N]``.
        classes: C names.
        probabilities: The network's, float ``[N, C]``.
        samples: Augmented training images, uint8 ``[S, H, W, 3]``, of which the first 32 are shown.
        sample_names: Their S classes.
    """
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    drawn = [*_epoch_charts(history, split), _lr_chart(lrs, steps_per_epoch), _speed_chart(history)]
    rows = charts.thinned([record.eval_accuracy for record in history], MAX_ROWS)
    template = _templates().get_template("report.html")
    text = template.render(
        name=config["name"] or path.resolve().parent.name,
        dataset=DATASETS.get(summary["dataset"], summary["dataset"]),
        summary=summary,
        planned=config["epochs"],
        split=split,
        figures=_figures(summary, split),
        charts=drawn,
        hover=[chart.hover for chart in drawn],
        epochs=[asdict(history[place]) for place in rows],
        epoch_count=len(history),
        classes=classes,
        results=_class_results(confusion_matrix(labels, predicted, len(classes)), classes),
        mistake_count=int((predicted != labels).sum()),
        mistakes=_mistakes(images, labels, classes, predicted, confidence),
        samples=[
            Picture(_data_uri(image), f"augmented image: {name}", [name])
            for image, name in zip(samples[:GRID_IMAGES], sample_names[:GRID_IMAGES], strict=True)
        ],
        settings=_settings(config),
        environment=_environment(summary),
        frame={name: getattr(charts, name.upper()) for name in ("width", "height", "left", "right", "top", "bottom")},
    )
    write_whole(path, text.encode(errors="replace"))  # a folder's name need not be Unicode


def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("s10_resnet.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # `tojson` escapes <, >, & and ' as \u003c and so on: nothing in a string can end the element that holds it.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment


def _figures(summary: Mapping[str, Any], split: str) -> list[tuple[str, str, str]]:
    """The headline: what, how much, and a remark."""
    return [
        (f"final {split} accuracy", _percent(summary[f"final_{split}_accuracy"]), f"epoch {summary['epochs']}"),
        (f"best {split} accuracy", _percent(summary[f"best_{split}_accuracy"]), f"epoch {summary['best_epoch']}"),
        ("final train accuracy", _percent(summary["final_train_accuracy"]), "on augmented images"),
        ("epochs", f"{summary['epochs']:,}", f"of {summary['train_images']:,} images"),
        (
            "training steps",
            _duration(summary["train_seconds"]),
            f"and {_duration(summary['eval_seconds'])} of evaluation",
        ),
        ("speed", f"{summary['images_per_second']:,.0f}", "images/s"),
        ("parameters", f"{summary['parameters']:,}", "ResNet-9"),
        ("peak learning rate", f"{summary['max_lr']:.3g}", f"seed {summary['seed']}"),
    ]


def _epoch_charts(history: Sequence[EpochRecord], split: str) -> list[Chart]:
    epochs = [record.epoch for record in history]
    series = ("train (augmented)", "train"), (split, "eval")

    def values(metric: str, unit: int) -> dict[tuple[str, str], list[float]]:
        return {key: [unit * getattr(record, f"{key[1]}_{metric}") for record in history] for key in series}

    return [
        charts.chart("loss", "Loss", "epoch", "cross entropy", epochs, values("loss", 1), ".4f"),
        charts.chart("accuracy", "Accuracy", "epoch", "accuracy, %", epochs, values("accuracy", 100), ".2f", unit=" %"),
    ]


def _lr_chart(lrs: Sequence[float], steps_per_epoch: int) -> Chart:
    title = f"Learning rate: peak {max(lrs):.3g} at step {int(np.argmax(lrs)):,}"
    series = {("learning rate", "eval"): lrs}
    chart = charts.chart("lr", title, "step", "learning rate", range(len(lrs)), series, ".4g", floor=0)
    return chart._replace(hover={**chart.hover, "steps_per_epoch": steps_per_epoch})


def _speed_chart(history: Sequence[EpochRecord]) -> Chart:
    epochs = [record.epoch for record in history]
    series = {("images/s", "eval"): [record.images_per_second for record in history]}
    return charts.chart("speed", "Speed of the training steps", "epoch", "images/s", epochs, series, ".1f", floor=0)


def _class_results(matrix: np.ndarray, classes: Sequence[str]) -> list[ClassResult]:
    results = []
    for label, (name, row) in enumerate(zip(classes, matrix, strict=True)):
        total, right = int(row.sum()), int(row[label])
        others = row.copy()
        others[label] = 0
        most = int(others.argmax())
        results.append(
            ClassResult(
                name,
                total,
                right,
                round(100 * right / total, 2) if total else 0.0,
                _percent(right / total, 1) if total else NOTHING,
                f"{classes[most]} ({others[most]:,})" if others[most] else NOTHING,
                # A linear scale would leave all but the diagonal white: most mistakes are under 5 % of their row.
                [(int(count), round(float(count / total) ** 0.4, 3) if total else 0.0) for count in row],
            )
        )
    return results


def _mistakes(
    images: np.ndarray, labels: np.ndarray, classes: Sequence[str], predicted: np.ndarray, confidence: np.ndarray
) -> list[Picture]:
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:GRID_IMAGES]
    pictures = []
    for i in wrong:
        taken_for, true = classes[predicted[i]], classes[labels[i]]
        alt = f"true class {true}, predicted {taken_for}"
        pictures.append(Picture(_data_uri(images[i]), alt, [taken_for, true, _percent(confidence[i], 1)]))
    return pictures


def _settings(config: Mapping[str, Any]) -> dict[str, list[Setting]]:
    """Rows by section; a setting that this version does not know has neither default nor explanation."""
    defaults = Config().to_json()
    about = {item.name: item.metadata["knob"].help for item in fields(Config)}
    order = sorted(config, key=lambda name: list(about).index(name) if name in about else len(about))
    sections: dict[str, list[Setting]] = {}
    title = ""
    for name in order:
        title = Config.SECTIONS.get(name, title) if name in about else "others"
        known = name in defaults
        default = _shown(defaults[name]) if known else NOTHING
        changed = known and config[name] != defaults[name]
        row = Setting(name, _shown(config[name]), default, changed, about.get(name, ""))
        sections.setdefault(title, []).append(row)
    return sections


def _environment(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(name, summary[name]) for name in ("device", "precision", "workers", "processes") if name in summary]
    rows += summary["hardware"].items()
    rows += summary["versions"].items()
    return [(name, _shown(value)) for name, value in [*rows, ("git commit", summary["git_commit"])]]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return NOTHING if value in (None, "") else str(value)


def _data_uri(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _percent(fraction: float, digits: int = 2) -> str:
    return f"{100 * fraction:.{digits}f} %" if math.isfinite(fraction) else NOTHING


def _duration(seconds: float) -> str:
    """The two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02} min"
