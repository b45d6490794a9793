"""The figure of a sweep: accuracy by the one setting that varies, or a row for each variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from s10_resnet.reporting.plots import (
    BLACK,
    BLUE,
    GREY,
    LEGEND,
    VERMILLION,
    fixed_style,
    new_figure,
    set_log_scale,
    set_up_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = {"accuracy": ("no TTA", BLUE, "o"), "accuracy_tta_flip_shift": ("TTA flip_shift", VERMILLION, "s")}


@fixed_style()
def plot_sweep(content: Mapping[str, Any], *, title: str) -> Figure:
    """Draws the accuracy of each run of a sweep, and the mean of each variant with its 95 % confidence interval.

    Args:
        content: Content of ``sweep.json``. Read are ``settings``; of each of ``variants`` its ``label``, ``changes``
            and ``statistics`` (of each accuracy ``n``, ``mean``, ``interval`` and ``values``; None if all failed).
        title: Title of the figure.
    """
    name = _varied_number(content)
    figure = new_figure(7, 4.4, title) if name else new_figure(8, 1.7 + 0.42 * len(content["variants"]), title)
    axes = figure.subplots()
    if name:
        _plot_curve(axes, content, name)
    else:
        _plot_rows(axes, content)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), ncols=3, **LEGEND)
    return figure


def _varied_number(content: Mapping[str, Any]) -> str | None:
    """Returns the one setting that varies, if it is a number with at least three values."""
    changes = [variant["changes"] for variant in content["variants"]]
    names = {name for changed in changes for name in changed}
    if len(names) != 1:
        return None
    (name,) = names
    values = {changed.get(name, content["settings"][name]) for changed in changes}
    numbers = all(isinstance(value, int | float) for value in values)  # there are only two booleans
    return name if numbers and len(values) >= 3 else None


def _plot_curve(axes: Axes, content: Mapping[str, Any], name: str) -> None:
    flag = "--" + name.replace("_", "-")
    values = {v["label"]: v["changes"].get(name, content["settings"][name]) for v in content["variants"]}
    points = sorted((v for v in content["variants"] if v["statistics"]), key=lambda v: values[v["label"]])
    for metric, (label, color, marker) in LOOKS.items():
        means = [100 * v["statistics"][metric]["mean"] for v in points]
        xs = [values[v["label"]] for v in points]
        axes.plot(xs, means, marker=marker, color=color, linewidth=1.8, label=f"mean, {label}", zorder=3)
        for x, variant in zip(xs, points, strict=True):
            one = variant["statistics"][metric]
            axes.plot([x] * one["n"], _percents(one["values"]), "_", color=color, markersize=8, zorder=2)
            if one["interval"]:
                axes.plot([x, x], _percents(one["interval"]), color=color, linewidth=1.2, zorder=2)
    _describe_marks(axes, "_")
    set_up_axes(axes, f"{flag} (n = {_count(points)} each)", "accuracy, %")
    low, high = min(values.values()), max(values.values())
    if low > 0 and high >= 8 * low:
        set_log_scale(axes)


def _plot_rows(axes: Axes, content: Mapping[str, Any]) -> None:
    variants = content["variants"]
    for shift, (metric, (label, color, marker)) in zip((-0.14, 0.14), LOOKS.items(), strict=True):
        for place, variant in enumerate(variants):
            if variant["statistics"] is None:
                continue
            one, y = variant["statistics"][metric], place + shift
            if one["interval"]:
                axes.plot(_percents(one["interval"]), [y, y], linewidth=1.8, color=color, zorder=3)
            if not place:
                axes.axvline(100 * one["mean"], color=color, linestyle="--", linewidth=0.9, zorder=1)
            axes.plot([100 * one["mean"]], [y], marker, markersize=7, color=color, label=f"mean, {label}", zorder=3)
            axes.plot(_percents(one["values"]), [y] * one["n"], "|", color=BLACK, markersize=7, zorder=4)
    _describe_marks(axes, "|")
    if variants[0]["statistics"]:
        axes.plot([], [], color=GREY, linestyle="--", linewidth=0.9, label=f"mean of {variants[0]['label']}")
    names = [f"{variant['label']} (n = {_count([variant])})" for variant in variants]
    axes.set_yticks(range(len(variants)), names)
    axes.set_ylim(len(variants) - 0.5, -0.5)
    set_up_axes(axes, "accuracy, %", "")
    axes.yaxis.grid(False)


def _describe_marks(axes: Axes, tick: str) -> None:
    """Adds to the legend what is drawn for every mean."""
    axes.plot([], [], tick, color=GREY, markersize=8, label="one run")
    axes.plot([], [], color=GREY, linewidth=1.2, label="95 % confidence interval of the mean")


def _count(variants: Sequence[Mapping[str, Any]]) -> str:
    """Returns the number of runs that ended well, or the least and the most of them."""
    counts = {next(iter(v["statistics"].values()))["n"] if v["statistics"] else 0 for v in variants}
    return " to ".join(str(count) for count in sorted({min(counts, default=0), max(counts, default=0)}))


def _percents(fractions: Sequence[float]) -> np.ndarray:
    return 100 * np.clip(fractions, 0, 1)  # the interval of few values may be wider than 0 to 100 %
