"""Records and curves in, matplotlib figures out; nothing here touches pyplot or any other global state.

Colours are Okabe and Ito's (https://jfly.uni-koeln.de/color/), told apart by colour-blind readers; line styles and
markers differ too, so every figure can be read in grey.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from s10_resnet.utils.io import write_whole

BLUE, VERMILLION, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
GREY, PALE = "#595959", "#A0A0A0"
DPI = 150
OPEN = {"fillstyle": "none", "markeredgewidth": 1.8, "zorder": 4}
LEGEND = {"loc": "outside lower center", "frameon": False}
RIVALS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, "#56B4E9", "black", GREY)
MARKERS = "os^DvPX*"
FIRM = {"linestyle": "-", "linewidth": 1.8, "markersize": 5, "zorder": 3}
FAINT = {"linestyle": "--", "linewidth": 0.9, "markersize": 3, "fillstyle": "none"}


class EpochLike(Protocol):
    """What `curves` reads of an epoch's record; accuracies are fractions of 1, ``epoch`` counts from 1."""

    epoch: int
    train_loss: float
    train_accuracy: float
    eval_loss: float
    eval_accuracy: float


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG into a folder that exists; a reader or a crash finds the old picture or the new, never a part."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight")
    write_whole(path, buffer.getvalue())


def curves(records: Sequence[EpochLike], *, split: str = "test", target: float = 0.9, title: str = "") -> Figure:
    """Loss and accuracy against epochs, with the best and the final epoch marked.

    Args:
        records: At least one, in the order of their epochs; NaN leaves a gap.
        split: What the ``eval_`` values were measured on, ``"test"`` or ``"val"``.
        target: Accuracy to reach, a fraction of 1.
        title: Title of the figure.
    """
    figure = new_figure(9.2, 4, title)
    loss, accuracy = figure.subplots(1, 2)
    epochs = [record.epoch for record in records]
    pad = max(0.5, 0.03 * len(epochs))
    dots = 4 if len(epochs) <= 40 else 0
    series = ("train (augmented)", "train", "s--", VERMILLION), (split, "eval", "o-", BLUE)
    for axes, metric, unit, ylabel in (loss, "loss", 1, "loss"), (accuracy, "accuracy", 100, "accuracy, %"):
        for label, prefix, style, color in series:
            values = [unit * getattr(record, f"{prefix}_{metric}") for record in records]
            axes.plot(epochs, values, style, color=color, label=label, markersize=dots, linewidth=1.8, clip_on=False)
        dress(axes, "epoch", ylabel)
        axes.set_xlim(epochs[0] - pad, epochs[-1] + pad)  # epochs of NaN too, or a run that broke would seem shorter
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))

    goal = 100 * target
    accuracy.axhline(goal, color=GREY, linestyle=(0, (6, 4)), linewidth=1.2, zorder=1)
    # In the margin: inside, some curve would always pass through the words.
    accuracy.text(1.02, goal, f"{goal:g} %\ntarget", transform=accuracy.get_yaxis_transform(), va="center", color=GREY)
    accuracy.set_ylim(top=min(accuracy.get_ylim()[1], 100))

    final = records[-1]
    finite = [record for record in records if math.isfinite(record.eval_accuracy)]
    best = max(finite, key=lambda record: record.eval_accuracy, default=final)
    # A ring that a diamond fits into, and the values in the legend: of 200 epochs, neighbours lie on top of each other.
    ring, diamond = {"marker": "o", "markersize": 13, **OPEN}, {"marker": "D", "markersize": 6, "zorder": 4}
    marks = [("best = final", final, ring)] if best is final else [("best", best, ring), ("final", final, diamond)]
    for name, record, look in marks:
        label = f"{name}: {_percent(record.eval_accuracy, 2)} (epoch {record.epoch})"
        point = [record.epoch], [100 * record.eval_accuracy]
        accuracy.plot(*point, color="black", linestyle="", label=label, clip_on=False, **look)
    figure.legend(*accuracy.get_legend_handles_labels(), ncols=4, **LEGEND)
    return figure


def lr_schedule(lrs: Sequence[float], *, steps_per_epoch: int, title: str = "") -> Figure:
    """Learning rate of every optimizer step, at least one; along the top the epochs of ``steps_per_epoch`` steps."""
    figure = new_figure(7, 3.6, title)
    axes = figure.subplots()
    axes.plot(lrs, color=BLUE, linewidth=2)
    step, peak = int(np.argmax(lrs)), max(lrs)
    label = f"peak {peak:.3g} at step {step} (epoch {step / steps_per_epoch:.3g})"
    axes.plot([step], [peak], "o", color=VERMILLION, markersize=8, label=label, clip_on=False)
    dress(axes, "step", "learning rate")
    axes.set(xlim=(0, len(lrs)), ylim=(0, 1.05 * peak))
    scale = (lambda x: x / steps_per_epoch), (lambda x: x * steps_per_epoch)
    axes.secondary_xaxis("top", functions=scale).set_xlabel("epoch")
    figure.legend(**LEGEND)
    return figure


def image_grid(images: np.ndarray, captions: Sequence[str], *, title: str = "", columns: int = 8) -> Figure:
    """Enlarged images, row by row, each above its caption.

    Args:
        images: uint8 ``[N, 32, 32, 3]``; N may be 0.
        captions: N texts; lines that are too long for a column are wrapped.
        title: Title of the figure.
        columns: Images in a full row.
    """
    texts = ["\n".join(textwrap.fill(line, 15) for line in caption.splitlines()) for caption in captions]
    pairs = list(zip(images, texts, strict=True))
    if not pairs:
        return new_figure(5, 1, f"{title}\nnothing to show".strip())
    columns = min(columns, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    side, across = 160 / DPI, 190 / DPI  # inches; 5 device pixels for each of the 32 keep the enlargement even
    down = side + 0.15 + 0.16 * max(text.count("\n") + 1 for text in texts)
    width, height = columns * across, (rows * down + 0.35) / 0.98  # the title hangs at 0.98 of the height
    figure = new_figure(width, height, title, layout="none")
    for index, (image, text) in enumerate(pairs):
        row, column = divmod(index, columns)
        left, bottom = (column + 0.5) * across - side / 2, (rows - row) * down - side
        axes = figure.add_axes((left / width, bottom / height, side / width, side / height), xticks=[], yticks=[])
        axes.imshow(image, interpolation="nearest")
        axes.set_xlabel(text, fontsize=9)
    return figure


def confusion(matrix: np.ndarray, classes: Sequence[str], *, title: str = "") -> Figure:
    """Counts of true against predicted classes, and beside them each class's accuracy.

    Args:
        matrix: int ``[C, C]``, images of the true class (row) taken for the predicted class (column).
        classes: C names.
        title: Title of the figure.
    """
    count = len(classes)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    figure = new_figure(3 + 0.52 * count, 1.8 + 0.42 * count, title)
    axes = figure.subplots()
    # A linear scale would leave everything off the diagonal white: most mistakes are under 5 % of their row.
    norm = PowerNorm(0.4, vmin=0, vmax=1)
    axes.imshow(shares, cmap="Blues", norm=norm, aspect="auto")
    for (row, column), images in np.ndenumerate(matrix):
        # On the blue at 0.71, white and black contrast alike, about 4.5 to 1.
        ink = "white" if norm(shares[row, column]) > 0.71 else "black" if images else PALE
        axes.text(column, row, str(images), ha="center", va="center", color=ink)
    for row, share in enumerate(shares.diagonal()):
        axes.text(count - 0.35, row, _percent(share, 1), va="center", fontweight="bold")
    axes.text(count - 0.35, -0.6, "accuracy", va="bottom")
    dress(axes, "predicted (colour: share of the row)", "true")
    axes.grid(False)
    axes.set_xticks(range(count), classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), classes)
    return figure


def predictions(
    pictures: Sequence[np.ndarray],
    heat_maps: np.ndarray,
    names: Sequence[str],
    tops: Sequence[Sequence[tuple[str, float]]],
    *,
    title: str = "",
) -> Figure:
    """What pictures are taken for, a row each: the picture, where the network looked, and the likeliest classes.

    Args:
        pictures: N of uint8 ``[S, S, 3]``, N at least 1.
        heat_maps: float ``[N, H, W]`` from 0 to 1, over the whole of each picture.
        names: N texts, such as the names of the files.
        tops: For each picture classes and their probabilities, fractions of 1.
        title: Title of the figure.
    """
    figure = new_figure(7.2, 1.7 * len(pictures) + 0.35 * bool(title) + 0.2, title)
    rows = figure.subplots(len(pictures), 3, squeeze=False, width_ratios=(1, 1, 1.9), sharex="col")
    extent = (0, 1, 0, 1)
    for (plain, seen, bars), picture, heat, name, top in zip(rows, pictures, heat_maps, names, tops, strict=True):
        plain.imshow(picture, extent=extent)
        seen.imshow(picture.mean(2), extent=extent, cmap="gray", vmin=0, vmax=255)  # grey: the colour is the map's
        seen.imshow(heat, extent=extent, cmap="inferno", vmin=0, vmax=1, alpha=0.6, interpolation="bicubic")
        plain.set_title(name if len(name) <= 22 else f"{name[:9]}...{name[-10:]}", fontsize=9)
        seen.set_title(f"evidence for {top[0][0]}", fontsize=9)
        for axes in (plain, seen):
            axes.set(xticks=[], yticks=[])
        shares = [100 * share for _, share in top]
        bars.barh(range(len(top)), shares, color=BLUE, height=0.6)
        for place, share in enumerate(shares):
            bars.text(share + 1.5, place, f"{share:.1f} %", va="center", fontsize=9)
        bars.set(xlim=(0, 118), ylim=(len(top) - 0.4, -0.6), xticks=[0, 50, 100])
        bars.set_yticks(range(len(top)), [label for label, _ in top])
        bars.spines[["top", "right"]].set_visible(False)
    rows[-1][2].set_xlabel("probability, %")
    return figure


def lr_range(
    lrs: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    *,
    suggestions: Mapping[str, float],
    recommended: str | None,
    picks: Sequence[float] = (),
    title: str = "",
) -> Figure:
    """Loss against learning rate in a range test, with the suggestions marked on the smoothed curve.

    Args:
        lrs: Learning rates in rising order, one a step.
        losses: Loss of each step, above 0; may explode or turn NaN at the end.
        smoothed: The same, smoothed.
        suggestions: Learning rate by rule; may be empty.
        recommended: Name of the rule to follow, or None.
        picks: What each of several tests recommends by itself, if the curve is their average.
        title: Title of the figure.
    """
    figure = new_figure(7, 4.4, title)
    axes = figure.subplots()
    what = "mean loss of all tests" if picks else "loss of one batch"
    axes.semilogx(lrs, losses, ".", color=PALE, markersize=4, label=what)
    axes.semilogx(lrs, smoothed, color=BLUE, linewidth=2.2, label="smoothed")
    # Open and ever smaller: rules that agree remain visible inside each other.
    looks = cycle((("o", VERMILLION, 16), ("s", GREEN, 13), ("D", PURPLE, 10), ("^", ORANGE, 7)))
    for (name, lr), (marker, color, size) in zip(suggestions.items(), looks, strict=False):
        loss = np.interp(math.log(lr), np.log(lrs), smoothed)
        axes.plot([lr], [loss], marker, color=color, markersize=size, label=f"{name}: {lr:.3g}", **OPEN)
    if recommended is not None:
        label = f"recommended: {recommended}"
        axes.axvline(suggestions[recommended], color="black", linestyle="--", linewidth=1.8, zorder=1, label=label)
    if picks:
        rug = {"transform": axes.get_xaxis_transform(), "marker": "|", "markersize": 14, "linestyle": ""}
        label = f"recommended by {len(picks)} tests alone"
        axes.plot(picks, [0.03] * len(picks), color="black", label=label, zorder=5, **rug)
    dress(axes, "learning rate", "loss")
    # Only the way down to the minimum sets the limits: the loss may rise a millionfold after it.
    low, high = np.nanmin(smoothed), np.nanmax(smoothed[: np.nanargmin(smoothed) + 1])
    margin = max(0.3 * (high - low), 0.1 * low)  # a loss that only rises has no way down
    axes.set_ylim(min(low, np.nanmin(losses)) - margin / 3, high + margin)
    figure.legend(ncols=3, **LEGEND)
    return figure


def comparison(
    groups: Sequence[tuple[str, Mapping[str, np.ndarray]]], *, split: str = "test", title: str = ""
) -> Figure:
    """Loss and accuracy of several trainings over each other; of repeated ones the mean within a standard deviation.

    Args:
        groups: At least one label with ``train_loss``, ``train_accuracy``, ``eval_loss`` and ``eval_accuracy`` of n
            repeated trainings, float ``[n, E]``; n and E are the group's own, accuracies fractions of 1, and NaN leaves
            a gap. Up to eight differ in colour as well as in marker.
        split: What the ``eval_`` values were measured on.
        title: Title of the figure.
    """
    figure = new_figure(9.2, 4, title)
    loss, accuracy = figure.subplots(1, 2)
    longest = max(values["eval_loss"].shape[1] for _, values in groups)
    entries = []
    for place, (label, values) in enumerate(groups):
        color = RIVALS[place % 8]
        runs, epochs = values["eval_loss"].shape
        every = max(1, math.ceil(epochs / 12))  # more markers than that would be a line of their own
        look = {"color": color, "marker": MARKERS[(place + place // 8) % 8], "clip_on": False}
        look["markevery"] = (place * every // len(groups) % epochs, every)  # out of step, or they hide each other
        for axes, metric, unit in (loss, "loss", 1), (accuracy, "accuracy", 100):
            for prefix, style in ("train", FAINT), ("eval", FIRM):
                single = unit * values[f"{prefix}_{metric}"]
                mean = single.mean(0)
                (line,) = axes.plot(range(1, epochs + 1), mean, **look, **style)
                if runs > 1:
                    std = single.std(0, ddof=1)
                    band = {"color": color, "alpha": 0.2 if prefix == "eval" else 0.1, "linewidth": 0}
                    axes.fill_between(range(1, epochs + 1), mean - std, mean + std, **band)
        entries.append((f"{label} (n = {runs})", line))
    for axes, ylabel in (loss, "loss"), (accuracy, "accuracy, %"):
        dress(axes, "epoch", ylabel)
        pad = max(0.5, 0.03 * longest)
        axes.set_xlim(1 - pad, longest + pad)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    accuracy.set_ylim(top=min(accuracy.get_ylim()[1], 100))

    entries.append((split, Line2D([], [], color=GREY, **FIRM)))
    entries.append(("train (augmented)", Line2D([], [], color=GREY, **FAINT)))
    if any(len(values["eval_loss"]) > 1 for _, values in groups):
        entries.append(("mean ± 1 standard deviation", Patch(color=GREY, alpha=0.2, linewidth=0)))
    labels, handles = zip(*entries, strict=True)
    columns = min(4, 120 // (max(map(len, labels)) + 8)) or 1  # as many as the width holds
    figure.set_figheight(3.6 + 0.21 * math.ceil(len(labels) / columns))
    legend = figure.legend(handles, ["-"] * len(labels), ncols=columns, **LEGEND)
    # Set afterwards: a label may begin with the underscore that hides it (matplotlib 3.9), or look like a formula.
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set(text=label, parse_math=False)
    return figure


def _percent(fraction: float, digits: int) -> str:
    return f"{100 * fraction:.{digits}f} %" if math.isfinite(fraction) else "\N{EN DASH}"


def new_figure(width: float, height: float, title: str, layout: str = "constrained") -> Figure:
    """An empty figure of so many inches."""
    figure = Figure((width, height), layout=layout, facecolor="white")
    figure.suptitle(title, fontsize="large", fontweight="bold")
    return figure


def dress(axes: Axes, xlabel: str, ylabel: str) -> None:
    """The look that all axes have."""
    axes.set(xlabel=xlabel, ylabel=ylabel, axisbelow=True)
    axes.grid(color="#E0E0E0", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
