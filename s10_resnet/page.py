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
from s10_resnet.files import write_whole
from s10_resnet.metrics import confusion_matrix
from s10_resnet.state import EpochRecord

GRID_IMAGES = 32
MAX_POINTS = 10_000  # of a curve to point at
MAX_DRAWN = 1_000  # of a curve that is drawn, some 400 units wide, and rows of the table of epochs
MAX_DOTS = 40  # a curve with more points goes without markers
WIDTH, HEIGHT = 480, 300  # of a chart, in the units of its SVG
LEFT, RIGHT, TOP, BOTTOM = 58, 466, 26, 252  # of the area of its curves
DATASETS = {"cifar10": "CIFAR-10", "synthetic": "the synthetic stand-in"}
NOTHING = "\N{EN DASH}"


class Line(NamedTuple):
    """A curve: its name and look, and where it runs, in the units of the SVG."""

    name: str
    look: str
    path: str
    dots: list[tuple[float, float]]


class Chart(NamedTuple):
    """All that the template needs to draw a chart, and what its script is to know of it (``hover``)."""

    key: str
    title: str
    description: str
    xlabel: str
    ylabel: str
    xticks: list[tuple[float, str]]
    yticks: list[tuple[float, str]]
    lines: list[Line]
    hover: dict[str, Any]


class Scale(NamedTuple):
    """A linear axis: the values at its two ends, and where those lie."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 2)


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
    charts = [*_epoch_charts(history, split), _lr_chart(lrs, steps_per_epoch), _speed_chart(history)]
    rows = _thinned([record.eval_accuracy for record in history], MAX_DRAWN)
    template = _templates().get_template("report.html")
    text = template.render(
        name=config["name"] or path.resolve().parent.name,
        dataset=DATASETS.get(summary["dataset"], summary["dataset"]),
        summary=summary,
        planned=config["epochs"],
        split=split,
        figures=_figures(summary, split),
        charts=charts,
        hover=[chart.hover for chart in charts],
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
        frame={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
    )
    write_whole(path, text.encode(errors="replace"))  # a folder's name need not be Unicode


def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("s10_resnet"),
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
        _chart("loss", "Loss", "epoch", "cross entropy", epochs, values("loss", 1), ".4f"),
        _chart("accuracy", "Accuracy", "epoch", "accuracy, %", epochs, values("accuracy", 100), ".2f", unit=" %"),
    ]


def _lr_chart(lrs: Sequence[float], steps_per_epoch: int) -> Chart:
    title = f"Learning rate: peak {max(lrs):.3g} at step {int(np.argmax(lrs)):,}"
    series = {("learning rate", "eval"): lrs}
    chart = _chart("lr", title, "step", "learning rate", range(len(lrs)), series, ".4g", floor=0)
    return chart._replace(hover={**chart.hover, "steps_per_epoch": steps_per_epoch})


def _speed_chart(history: Sequence[EpochRecord]) -> Chart:
    epochs = [record.epoch for record in history]
    series = {("images/s", "eval"): [record.images_per_second for record in history]}
    return _chart("speed", "Speed of the training steps", "epoch", "images/s", epochs, series, ".1f", floor=0)


def _chart(
    key: str,
    title: str,
    xlabel: str,
    ylabel: str,
    xs: Sequence[int],
    series: Mapping[tuple[str, str], Sequence[float]],
    form: str,
    *,
    unit: str = "",
    floor: float | None = None,
) -> Chart:
    """Curves over whole numbers.

    Args:
        key: Of the chart, unique in the page.
        title: What stands above it.
        xlabel: What is counted along x.
        ylabel: What stands beside the y axis.
        xs: Where the values lie, in rising order.
        series: As many values by (name, look); NaN leaves a gap.
        form: Format of a value.
        unit: What follows a value.
        floor: A value that the y axis reaches down to.
    """
    everything = np.concatenate([np.asarray(values, float) for values in series.values()])
    finite = everything[np.isfinite(everything)].tolist()
    yticks = _ticks(*_span(finite if floor is None else [*finite, floor]), outward=True)
    x = Scale(*((xs[0], xs[-1]) if len(xs) > 1 else (xs[0] - 0.5, xs[0] + 0.5)), LEFT, RIGHT)
    y = Scale(yticks[0], yticks[-1], BOTTOM, TOP)
    lines, texts, described = [], [], []
    kept = _thinned(next(iter(series.values())), MAX_POINTS)
    for (name, look), values in series.items():
        drawn = _thinned(values, MAX_DRAWN)
        points = [(x(xs[i]), y(values[i])) if math.isfinite(values[i]) else None for i in drawn]
        dots = [point for point in points if point] if len(points) <= MAX_DOTS else []
        lines.append(Line(name, look, _path(points), dots))
        texts.append([format(values[i], form) if math.isfinite(values[i]) else None for i in kept])
        first, last = (format(values[i], form) + unit for i in (0, -1))
        described.append(f"{name}: {first} at {xlabel} {xs[0]:,}, {last} at {xlabel} {xs[-1]:,}")
    hover = {
        "key": key,
        "label": xlabel,
        "unit": unit,
        "x": [xs[i] for i in kept],
        "xscale": x,
        "yscale": y,
        "names": [name for name, _ in series],
        "looks": [look for _, look in series],
        "texts": texts,
    }
    xticks = _ticks(x.low, x.high, whole=True)
    description = f"{title}, by {xlabel}. {'; '.join(described)}."
    return Chart(key, title, description, xlabel, ylabel, _marked(x, xticks), _marked(y, yticks), lines, hover)


def _span(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the largest, and in any case from one number to a larger one."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if low < high:
        return low, high
    return (0.8 * high, high) if high > 0 else (0.0, 1.0)  # downwards: there is no accuracy above 100 %


def _ticks(low: float, high: float, *, whole: bool = False, outward: bool = False) -> list[float]:
    """Round numbers at even distances, about five: those between the ends or, ``outward``, around them."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    if whole:
        step = max(1, round(step))
    slack = -1e-9 if outward else 1e-9  # 0.3 / 0.1 is not 3
    first, last = low / step - slack, high / step + slack
    ends = (math.floor(first), math.ceil(last)) if outward else (math.ceil(first), math.floor(last))
    return [number * step for number in range(ends[0], ends[1] + 1)]


def _marked(scale: Scale, ticks: Sequence[float]) -> list[tuple[float, str]]:
    return [(scale(tick), f"{tick:,.6g}" if tick < 1e6 else f"{tick:,.0f}") for tick in ticks]


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """The ``d`` of an SVG path through the points; None breaks it."""
    steps, pen_down = [], False
    for point in points:
        if point is not None:
            steps.append(f"{'L' if pen_down else 'M'}{point[0]:g} {point[1]:g}")
        pen_down = point is not None
    return "".join(steps)


def _thinned(values: Sequence[float], most: int) -> list[int]:
    """Places of at most ``most`` values, evenly spread, the ends and the largest among them."""
    if len(values) <= most:
        return list(range(len(values)))
    spread = np.linspace(0, len(values) - 1, most - 1).round().astype(int)
    return sorted({*spread.tolist(), int(np.nan_to_num(values, nan=-np.inf).argmax())})


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
