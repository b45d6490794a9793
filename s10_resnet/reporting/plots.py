"""Figures of training runs, predictions and range tests, made of plain numbers with matplotlib.

matplotlib is imported when the first figure is drawn, pyplot never. Figures are drawn and saved with matplotlib's
default settings whatever a matplotlibrc says, and no text is parsed as a formula. The colors are Okabe and Ito's
(https://jfly.uni-koeln.de/color/), which color-blind readers can tell apart; line styles and markers differ as well.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from s10_resnet.reporting.formatting import percent
from s10_resnet.utils.io import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

BLUE, VERMILLION, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
BLACK, GREY, PALE, GRID = "#000000", "#595959", "#A0A0A0", "#E0E0E0"
CELL = "#00609A"  # darker than BLUE, for white text
DPI = 150
GRID_COLUMNS = 8
OPEN: dict[str, Any] = {"fillstyle": "none", "markeredgewidth": 1.8, "zorder": 4}
LEGEND: dict[str, Any] = {"loc": "outside lower center", "frameon": False}
GROUP_COLORS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, "#56B4E9", BLACK, GREY)
GROUP_MARKERS = "os^DvPX*"
STRONG: dict[str, Any] = {"linestyle": "-", "linewidth": 1.8, "markersize": 5, "zorder": 3}
THIN: dict[str, Any] = {"linestyle": "--", "linewidth": 0.9, "markersize": 3, "fillstyle": "none"}
# A linear color scale would leave all but the diagonal white: most errors are under 5 % of their row.
SHARES = (0, 0.0005, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1)
OPACITIES = (0, 0.07, 0.15, 0.23, 0.32, 0.43, 0.55, 0.7, 1)

Epoch = Any  # an object with the attributes of EpochMetrics: ``epoch`` counts from 1, accuracies are fractions of 1


@contextmanager
def fixed_style() -> Iterator[None]:
    """Applies matplotlib's default settings, and puts those of the user back afterwards."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "text.parse_math": False,
                "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
                "svg.fonttype": "none",
                "svg.hashsalt": "s10_resnet",  # the same ids in every process
            }
        )
        yield


@fixed_style()
def save(figure: Figure, path: Path) -> None:
    """Writes a PNG, atomically, into a folder that exists."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches=_lay_out(figure), pil_kwargs={"compress_level": 1})
    atomic_write(path, buffer.getvalue())


@fixed_style()
def to_svg(figure: Figure) -> str:
    """Returns an SVG document with a transparent background, texts as text, and the same bytes for the same figure."""
    buffer = io.BytesIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", bbox_inches=_lay_out(figure), transparent=True, metadata=no_metadata)
    return buffer.getvalue().decode()


@fixed_style()
def plot_curves(
    history: Sequence[Epoch], *, split: str = "test", target: float | None = None, title: str = ""
) -> Figure:
    """Plots loss and accuracy by epoch, at least one, with the best and the final epoch marked; NaN leaves a gap.

    ``split`` is what the ``eval_`` values were measured on. The target is an accuracy, a fraction of 1.
    """
    figure = new_figure(9.2, 4, title)
    loss, accuracy = figure.subplots(1, 2)
    epochs = [metrics.epoch for metrics in history]
    series = ("train (augmented)", "train", "s--", VERMILLION), (split, "eval", "o-", BLUE)
    size = 4 if len(epochs) <= 40 else 0  # markers of few epochs can be told apart
    for axes, metric, unit in (loss, "loss", 1), (accuracy, "accuracy", 100):
        for label, prefix, style, color in series:
            values = [unit * getattr(metrics, f"{prefix}_{metric}") for metrics in history]
            axes.plot(epochs, values, style, color=color, label=label, linewidth=1.8, markersize=size, clip_on=False)
    if target is not None:
        line = {"color": GREY, "linestyle": (0, (6, 4)), "linewidth": 1.2, "zorder": 1}
        accuracy.axhline(100 * target, label=f"target: {100 * target:g} %", **line)
    _set_up_epoch_axes(loss, accuracy, len(epochs))  # epochs of NaN too, or a failed run would seem shorter

    final = history[-1]
    finite = [metrics for metrics in history if math.isfinite(metrics.eval_accuracy)]
    best = max(finite, key=lambda metrics: metrics.eval_accuracy, default=final)
    # A ring that a diamond fits into, and the values in the legend: of 200 epochs, neighbours lie on top of each other.
    ring, diamond = {"marker": "o", "markersize": 13, **OPEN}, {"marker": "D", "markersize": 6, "zorder": 4}
    marks = [("best = final", final, ring)] if best is final else [("best", best, ring), ("final", final, diamond)]
    for name, metrics, look in marks:
        label = f"{name}: {percent(metrics.eval_accuracy)} (epoch {metrics.epoch})"
        x, y = [metrics.epoch], [100 * metrics.eval_accuracy]
        accuracy.plot(x, y, color=BLACK, linestyle="", label=label, clip_on=False, **look)
    handles, labels = accuracy.get_legend_handles_labels()
    figure.legend(handles, labels, ncols=4 if len(labels) == 4 else 3, **LEGEND)
    return figure


@fixed_style()
def plot_lr_schedule(lrs: Sequence[float], *, steps_per_epoch: int, title: str = "") -> Figure:
    """Plots the learning rate of every optimizer step, at least one; the axis on top counts epochs."""
    figure = new_figure(4.8, 3.3, title)
    axes = figure.subplots()
    axes.plot(lrs, color=BLUE, linewidth=2)
    step, peak = int(np.argmax(lrs)), max(lrs)
    label = f"peak {peak:.3g} at step {step:,} (epoch {step / steps_per_epoch:.3g})"
    axes.plot([step], [peak], "o", color=VERMILLION, markersize=8, label=label, clip_on=False)
    set_up_axes(axes, "step", "learning rate")
    axes.set(xlim=(0, len(lrs)), ylim=(0, 1.05 * peak))
    scale = (lambda x: x / steps_per_epoch), (lambda x: x * steps_per_epoch)
    axes.secondary_xaxis("top", functions=scale).set_xlabel("epoch")
    figure.legend(**LEGEND)
    return figure


@fixed_style()
def plot_images(images: np.ndarray, captions: Sequence[str], *, title: str = "") -> Figure:
    """Plots enlarged images, uint8 ``[N, 32, 32, 3]``, row by row, each above its caption; N may be 0."""
    from matplotlib.image import PcolorImage

    if not len(images):
        return new_figure(5, 1, f"{title}\nno images".strip())
    texts = ["\n".join(textwrap.fill(line, 15) for line in caption.splitlines()) for caption in captions]
    columns = min(GRID_COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    # One array of device pixels in one Axes, and not drawn by imshow, which resamples: either would take far longer.
    cell_width, cell_height = 190, 184 + 24 * max(text.count("\n") + 1 for text in texts)
    cells = np.full((rows * columns, cell_height, cell_width, 3), 255, np.uint8)
    cells[: len(images), :164, 13:177] = 0  # frames
    cells[: len(images), 2:162, 15:175] = images.repeat(5, axis=1).repeat(5, axis=2)
    canvas = cells.reshape(rows, columns, cell_height, cell_width, 3).swapaxes(1, 2)
    canvas = canvas.reshape(rows * cell_height, columns * cell_width, 3)[:-10, 13:-13]
    height, width = canvas.shape[:2]
    figure = new_figure(width / DPI, height / DPI + (0.35 if title else 0), title)
    figure.set_layout_engine(None)
    axes = figure.add_axes((0, 0, 1, height / DPI / figure.get_figheight()), xticks=[], yticks=[])
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    axes.add_image(PcolorImage(axes, A=canvas, in_layout=False))
    for index, text in enumerate(texts):
        row, column = divmod(index, columns)
        axes.text(column * cell_width + 82, row * cell_height + 171, text, ha="center", va="top", fontsize=9)
    return figure


@fixed_style()
def plot_confusion_matrix(matrix: np.ndarray, classes: Sequence[str], *, title: str = "") -> Figure:
    """Plots a confusion matrix, int ``[C, C]`` by true class (row) and predicted class, and the accuracy by class."""
    from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgba

    count = len(classes)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    figure = new_figure(3.9 + 0.5 * count, 1.8 + 0.42 * count, title)
    axes = figure.subplots()
    colors = ListedColormap([to_rgba(CELL, opacity) for opacity in OPACITIES])
    norm = BoundaryNorm(SHARES, len(OPACITIES))
    mesh = axes.pcolormesh(shares, cmap=colors, norm=norm, edgecolors="white", linewidth=0.8)
    for (row, column), images in np.ndenumerate(matrix):
        ink = "white" if shares[row, column] >= SHARES[-2] else BLACK if images else PALE
        place: dict[str, Any] = {"ha": "center", "va": "center", "in_layout": False}  # their cells have room for them
        axes.text(column + 0.5, row + 0.5, f"{images:,}", color=ink, fontsize=9, **place)
    for row, share in enumerate(shares.diagonal()):
        axes.text(count + 0.15, row + 0.5, percent(share, 1), va="center", fontweight="bold", fontsize=9)
    axes.text(count + 0.15, -0.15, "accuracy", va="bottom")
    set_up_axes(axes, "predicted class", "true class")
    axes.grid(False)
    axes.invert_yaxis()
    axes.set_xticks(np.arange(count) + 0.5, classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(np.arange(count) + 0.5, classes)
    bar = figure.colorbar(mesh, spacing="uniform", aspect=30, pad=0.02)
    bar.set_label("share of the row")
    bar.minorticks_off()
    bar.set_ticks(SHARES[2:-1], labels=[f"{100 * share:g} %" for share in SHARES[2:-1]])
    return figure


@fixed_style()
def plot_predictions(
    images: Sequence[np.ndarray],
    heat_maps: np.ndarray,
    names: Sequence[str],
    tops: Sequence[Sequence[tuple[str, float]]],
    *,
    title: str = "",
) -> Figure:
    """Plots a row for each image: the image, its Grad-CAM heat map, and the most probable classes.

    Args:
        images: N of uint8 ``[S, S, 3]``, N at least 1.
        heat_maps: float ``[N, H, W]`` from 0 to 1, over the whole of each image.
        names: N texts, such as the names of the files.
        tops: For each image classes and their probabilities, fractions of 1.
        title: Title of the figure.
    """
    figure = new_figure(7.2, 1.7 * len(images) + 0.35 * bool(title) + 0.2, title)
    rows = figure.subplots(len(images), 3, squeeze=False, width_ratios=(1, 1, 1.9), sharex="col")
    extent = (0, 1, 0, 1)
    for (left, middle, bars), image, heat, name, top in zip(rows, images, heat_maps, names, tops, strict=True):
        left.imshow(image, extent=extent)
        middle.imshow(image.mean(2), extent=extent, cmap="gray", vmin=0, vmax=255)  # grey: the color is the map's
        middle.imshow(heat, extent=extent, cmap="inferno", vmin=0, vmax=1, alpha=0.6, interpolation="bicubic")
        left.set_title(name if len(name) <= 22 else f"{name[:9]}...{name[-10:]}", fontsize=9)
        middle.set_title(f"Grad-CAM: {top[0][0]}", fontsize=9)
        for axes in (left, middle):
            axes.set(xticks=[], yticks=[])
        bars.barh(range(len(top)), [100 * share for _, share in top], color=BLUE, height=0.6)
        for place, (_, share) in enumerate(top):
            position: dict[str, Any] = {"transform": bars.get_yaxis_transform(), "ha": "right", "va": "center"}
            bars.text(1.22, place, percent(share, 1), fontsize=9, **position)
        bars.set(xlim=(0, 100), ylim=(len(top) - 0.4, -0.6), xticks=[0, 50, 100])
        bars.set_yticks(range(len(top)), [label for label, _ in top])
        bars.spines[["top", "right"]].set_visible(False)
    rows[-1][2].set_xlabel("probability, %")
    return figure


@fixed_style()
def plot_lr_range(
    lrs: Sequence[float] | np.ndarray,
    losses: Sequence[float] | np.ndarray,
    smoothed: Sequence[float] | np.ndarray,
    *,
    suggestions: Mapping[str, float],
    recommended: str | None,
    title: str = "",
) -> Figure:
    """Plots the loss by learning rate in a range test, with the suggestions marked on the smoothed curve.

    Args:
        lrs: Learning rates in rising order, one a step.
        losses: Loss of each step, above 0; may explode or turn NaN at the end.
        smoothed: The same, smoothed.
        suggestions: Learning rate by rule, of at most four; may be empty.
        recommended: Name of the rule to follow, or None.
        title: Title of the figure.
    """
    figure = new_figure(7, 4.4, title)
    axes = figure.subplots()
    axes.plot(lrs, losses, ".", color=PALE, markersize=4, label="loss of one batch")
    axes.plot(lrs, smoothed, color=BLUE, linewidth=2.2, label="smoothed")
    # Open and ever smaller: rules that agree remain visible inside each other.
    looks = ("o", VERMILLION, 16), ("s", GREEN, 13), ("D", PURPLE, 10), ("^", ORANGE, 7)
    for (name, lr), (marker, color, size) in zip(suggestions.items(), looks, strict=False):
        loss = np.interp(math.log(lr), np.log(lrs), smoothed)
        axes.plot([lr], [loss], marker, color=color, markersize=size, label=f"{name}: {lr:.3g}", **OPEN)
    if recommended is not None:
        label = f"recommended: {recommended}"
        axes.axvline(suggestions[recommended], color=BLACK, linestyle="--", linewidth=1.8, zorder=1, label=label)
    set_up_axes(axes, "learning rate", "loss")
    set_log_scale(axes)
    # Only the way down to the minimum sets the limits: the loss may rise a millionfold after it.
    low, high = np.nanmin(smoothed), np.nanmax(smoothed[: int(np.nanargmin(smoothed)) + 1])
    margin = max(0.3 * (high - low), 0.1 * low)  # a loss that only rises has no way down
    axes.set_ylim(min(low, np.nanmin(losses)) - margin / 3, high + margin)
    figure.legend(ncols=3, **LEGEND)
    return figure


@fixed_style()
def plot_comparison(
    groups: Sequence[tuple[str, Mapping[str, np.ndarray]]], *, split: str = "test", title: str = ""
) -> Figure:
    """Plots loss and accuracy by epoch of several groups of runs: their mean within one standard deviation.

    A group is a label with ``train_loss``, ``train_accuracy``, ``eval_loss`` and ``eval_accuracy`` of n runs, float
    ``[n, E]``; n and E are the group's own, accuracies fractions of 1, and NaN leaves a gap. Up to eight groups differ
    in color as well as in marker. ``split`` is what the ``eval_`` values were measured on.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure = new_figure(9.2, 4, title)
    loss, accuracy = figure.subplots(1, 2)
    entries: list[tuple[str, Any]] = []
    for place, (label, values) in enumerate(groups):
        color = GROUP_COLORS[place % 8]
        runs, epochs = values["eval_loss"].shape
        every = max(1, math.ceil(epochs / 12))  # more markers than that would be a line of their own
        first = place * every // len(groups) % epochs  # out of step, or they hide each other
        look = {"color": color, "marker": GROUP_MARKERS[place % 8], "markevery": (first, every), "clip_on": False}
        x = range(1, epochs + 1)
        for axes, metric, unit in (loss, "loss", 1), (accuracy, "accuracy", 100):
            for prefix, style, alpha in ("train", THIN, 0.1), ("eval", STRONG, 0.2):
                single = unit * values[f"{prefix}_{metric}"]
                mean = single.mean(0)
                (line,) = axes.plot(x, mean, **look, **style)
                if runs > 1:
                    std = single.std(0, ddof=1)
                    axes.fill_between(x, mean - std, mean + std, color=color, alpha=alpha, linewidth=0)
        entries.append((f"{label} (n = {runs})", line))
    _set_up_epoch_axes(loss, accuracy, max(values["eval_loss"].shape[1] for _, values in groups))
    entries.append((split, Line2D([], [], color=GREY, **STRONG)))
    entries.append(("train (augmented)", Line2D([], [], color=GREY, **THIN)))
    if any(len(values["eval_loss"]) > 1 for _, values in groups):
        entries.append(("mean ± 1 standard deviation", Patch(color=GREY, alpha=0.2, linewidth=0)))
    labels, handles = zip(*entries, strict=True)
    columns = min(4, 120 // (max(map(len, labels)) + 8)) or 1  # as many as the width holds
    figure.set_figheight(3.6 + 0.21 * math.ceil(len(labels) / columns))
    legend = figure.legend(handles, ["-"] * len(labels), ncols=columns, **LEGEND)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(label)  # set afterwards: a label that begins with an underscore would be left out
    return figure


def new_figure(width: float, height: float, title: str) -> Figure:
    """Returns an empty figure of a size in inches."""
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize="large", fontweight="bold")
    return figure


def set_up_axes(axes: Axes, xlabel: str, ylabel: str) -> None:
    """Gives axes their labels and the look that all have."""
    axes.set(xlabel=xlabel, ylabel=ylabel, axisbelow=True)
    axes.grid(color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def set_log_scale(axes: Axes) -> None:
    """Makes the x axis logarithmic, with tick labels such as 1e-05: the usual ones are formulas."""
    from matplotlib.ticker import LogFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(LogFormatter())
    axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))


def _lay_out(figure: Figure) -> Bbox:
    """Places what a figure consists of, and returns the box around it in inches; `savefig` would draw all for that."""
    figure.set_dpi(DPI)
    engine = figure.get_layout_engine()
    if engine and figure.axes:  # constrained layout warns of a figure without Axes
        engine.execute(figure)
        figure.set_layout_engine(None)
    return figure.get_tightbbox().padded(0.1)


def _set_up_epoch_axes(loss: Axes, accuracy: Axes, epochs: int) -> None:
    pad = max(0.5, 0.03 * epochs)
    for axes, ylabel in (loss, "loss"), (accuracy, "accuracy, %"):
        set_up_axes(axes, "epoch", ylabel)
        axes.set_xlim(1 - pad, epochs + pad)
        axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    accuracy.set_ylim(top=min(accuracy.get_ylim()[1], 100))
