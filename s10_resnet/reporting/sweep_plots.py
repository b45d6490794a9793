"""The figure of a sweep: accuracy by the one setting that varies, or a row for each variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from s10_resnet.reporting import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = {"accuracy": ("no TTA", plots.BLUE, "o"), "accuracy_tta_flip_shift": ("TTA flip_shift", plots.VERMILLION, "s")}


@plots.fixed_style()
def plot_sweep(content: Mapping[str, Any], *, title: str) -> Figure:
    """Plots the accuracy of each run in the content of ``sweep.json``, and the means with 95 % confidence intervals."""
    setting, variants = _varied_number(content), content["variants"]
    figure = plots.new_figure(7, 4.4, title) if setting else plots.new_figure(8, 1.7 + 0.42 * len(variants), title)
    axes = figure.subplots()
    if setting:
        values = [variant["changes"].get(setting, content["settings"][setting]) for variant in variants]
        _plot_curve(axes, variants, values)
        plots.set_up_axes(axes, f"--{setting.replace('_', '-')} (n = {_count(variants)} each)", "accuracy, %")
    else:
        _plot_rows(axes, variants)
    if any(variant["statistics"] and variant["statistics"]["accuracy"]["interval"] for variant in variants):
        axes.plot([], [], color=plots.GREY, linewidth=1.2, label="95 % confidence interval of the mean")
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), ncols=3, **plots.LEGEND)
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


def _plot_curve(axes: Axes, variants: Sequence[Mapping[str, Any]], values: Sequence[float]) -> None:
    points = sorted((value, index) for index, value in enumerate(values) if variants[index]["statistics"])
    for metric, (label, color, marker) in LOOKS.items():
        results = [variants[index]["statistics"][metric] for _, index in points]
        xs, means = [value for value, _ in points], [100 * one["mean"] for one in results]
        axes.plot(xs, means, marker=marker, color=color, linewidth=1.8, label=f"mean, {label}", zorder=3, clip_on=False)
        for x, one in zip(xs, results, strict=True):
            axes.plot([x] * one["n"], _percents(one["values"]), "_", color=color, markersize=8, zorder=2)
            if one["interval"]:
                axes.plot([x, x], _percents(one["interval"]), color=color, linewidth=1.2, zorder=2)
    axes.plot([], [], "_", color=plots.GREY, markersize=8, label="one run")
    if min(values) > 0 and max(values) >= 8 * min(values):
        plots.set_log_scale(axes)
    axes.set_ylim(top=min(axes.get_ylim()[1], 100))


def _plot_rows(axes: Axes, variants: Sequence[Mapping[str, Any]]) -> None:
    for shift, (metric, (label, color, marker)) in zip((-0.14, 0.14), LOOKS.items(), strict=True):
        for row, variant in enumerate(variants):
            if variant["statistics"] is None:
                continue
            one, y = variant["statistics"][metric], row + shift
            if one["interval"]:
                axes.plot(_percents(one["interval"]), [y, y], linewidth=1.8, color=color, zorder=3)
            if row == 0:
                axes.axvline(100 * one["mean"], color=color, linestyle="--", linewidth=0.9, zorder=1)
            (mean,) = axes.plot([100 * one["mean"]], [y], marker, markersize=7, color=color, label=f"mean, {label}")
            mean.set(zorder=3, clip_on=False)  # it may lie on the edge, 100 %
            axes.plot(_percents(one["values"]), [y] * one["n"], "|", color=plots.BLACK, markersize=7, zorder=4)
    axes.plot([], [], "|", color=plots.GREY, markersize=8, label="one run")
    if variants[0]["statistics"]:
        axes.plot([], [], color=plots.GREY, linestyle="--", linewidth=0.9, label=f"mean of {variants[0]['label']}")
    axes.set_yticks(range(len(variants)), [f"{variant['label']} (n = {_count([variant])})" for variant in variants])
    axes.set(xlim=(None, min(axes.get_xlim()[1], 100)), ylim=(len(variants) - 0.5, -0.5))
    plots.set_up_axes(axes, "accuracy, %", "")
    axes.yaxis.grid(False)


def _count(variants: Sequence[Mapping[str, Any]]) -> str:
    """Returns the number of runs that ended well, or the least and the most of them."""
    counts = {variant["statistics"]["accuracy"]["n"] if variant["statistics"] else 0 for variant in variants}
    return " to ".join(str(count) for count in sorted({min(counts), max(counts)}))


def _percents(fractions: Sequence[float]) -> np.ndarray:
    return 100 * np.clip(fractions, 0, 1)  # the interval of few values may be wider than 0 to 100 %
