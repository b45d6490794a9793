"""The picture of a sweep: accuracy against the one setting that varies, or a line for each variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from s10_resnet.reporting.plots import BLUE, LEGEND, VERMILLION, dress, new_figure
from s10_resnet.settings import flag

AUTO = "auto"
VIEWS = {"none": ("plain", BLUE, "o"), "six": ("test-time augmentation, six views", VERMILLION, "s")}


def draw(content: Mapping[str, Any], *, title: str) -> Figure:
    """What the variants came to: every training, means, and their 95 % intervals.

    Args:
        content: Of ``sweep.json``.
        title: Title of the figure.
    """
    name = _varied(content)
    return _lines(content, title) if name is None else _course(content, name, title)


def _varied(content: Mapping[str, Any]) -> str | None:
    """The one setting that varies, if that is a number and has three values at least."""
    changes = [variant["changes"] for variant in content["variants"]]
    names = {name for changed in changes for name in changed}
    if len(names) != 1 or any(len(changed) > 1 for changed in changes):
        return None
    (name,) = names
    values = {changed.get(name, content["settings"][name]) for changed in changes} - {AUTO}
    numbers = all(isinstance(value, int | float) for value in values)  # of switches there are only two
    return name if numbers and len(values) >= 3 else None


def _course(content: Mapping[str, Any], name: str, title: str) -> Figure:
    figure = new_figure(7, 4.4, title)
    axes = figure.subplots()
    values = {v["label"]: v["changes"].get(name, content["settings"][name]) for v in content["variants"]}
    measured = [v for v in content["variants"] if v["statistics"] and values[v["label"]] != AUTO]
    measured.sort(key=lambda variant: values[variant["label"]])
    found = [run for run in content["runs"] if values.get(run["variant"]) == AUTO and not run["failed"]]
    for views, (label, color, marker) in VIEWS.items():
        line = [(values[v["label"]], 100 * v["statistics"][views]["mean"]) for v in measured]
        axes.plot(*zip(*line, strict=True), marker=marker, color=color, linewidth=1.8, label=label, zorder=3)
        for variant in measured:
            x, one = values[variant["label"]], variant["statistics"][views]
            axes.plot([x] * one["n"], _percents(one["values"]), "_", color=color, markersize=8, zorder=2)
            if one["interval"]:
                axes.plot([x, x], _percents(one["interval"]), color=color, linewidth=1.2, zorder=2)
        if found:
            picked = [run["max_lr"] for run in found], _percents([run[f"accuracy_{views}"] for run in found])
            star = {"marker": "*", "markersize": 12, "markeredgecolor": "black", "linestyle": "", "zorder": 4}
            axes.plot(*picked, color=color, label=f"the same, at {flag(name)} auto", **star)
    numbers = [value for value in values.values() if value != AUTO]
    if min(numbers) > 0 and max(numbers) >= 8 * min(numbers):
        axes.set_xscale("log")
    dress(axes, flag(name), "accuracy, %")
    figure.legend(ncols=2, **LEGEND)
    return figure


def _lines(content: Mapping[str, Any], title: str) -> Figure:
    variants = content["variants"]
    figure = new_figure(8, 1.5 + 0.42 * len(variants), title)
    axes = figure.subplots()
    for shift, (views, (label, color, marker)) in zip((-0.14, 0.14), VIEWS.items(), strict=True):
        look = {"color": color, "zorder": 3}
        for place, variant in enumerate(variants):
            if variant["statistics"] is None:
                continue
            one, y = variant["statistics"][views], place + shift
            if one["interval"]:
                axes.plot(_percents(one["interval"]), [y, y], linewidth=1.8, **look)
            if not place:
                axes.axvline(100 * one["mean"], color=color, linestyle="--", linewidth=0.9, zorder=1)
            axes.plot([100 * one["mean"]], [y], marker, markersize=7, **look)
            axes.plot(_percents(one["values"]), [y] * one["n"], "|", color="black", markersize=7, zorder=4)
        axes.plot([], [], marker, label=label, **look)
    axes.set_yticks(range(len(variants)), [variant["label"] for variant in variants])
    axes.set_ylim(len(variants) - 0.5, -0.5)
    dress(axes, "accuracy, %: every training, mean, 95 % interval of the mean", "")
    axes.yaxis.grid(False)
    figure.legend(ncols=2, **LEGEND)
    return figure


def _percents(fractions: Sequence[float]) -> np.ndarray:
    return 100 * np.clip(fractions, 0, 1)  # the interval of few values may pass what there is
