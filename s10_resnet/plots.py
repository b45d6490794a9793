"""Records and curves in, matplotlib figures out; nothing here touches pyplot or any other global state.

Colours are Okabe and Ito's (https://jfly.uni-koeln.de/color/), told apart by colour-blind readers; line styles and
markers differ too, so every figure can be read in grey.
"""

from __future__ import annotations

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
from matplotlib.ticker import MaxNLocator

BLUE, VERMILLION, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
GREY = "#595959"
DPI = 150
FONT = 11


class EpochLike(Protocol):
    """What `curves` reads of an epoch's record; accuracies are fractions of 1, ``epoch`` counts from 1."""

    epoch: int
    train_loss: float
    train_accuracy: float
    eval_loss: float
    eval_accuracy: float


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG; whoever reads ``path`` finds the old picture or the new one, never half of one.

    Args:
        figure: What to draw.
        path: Where to; its folder exists.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=DPI, bbox_inches="tight")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def curves(records: Sequence[EpochLike], *, split: str = "test", target: float = 0.9, title: str = "") -> Figure:
    """Loss and accuracy against epochs, with the best and the final epoch marked.

    Args:
        records: At least one, in the order of their epochs; NaN leaves a gap.
        split: What the ``eval_`` values were measured on, ``"test"`` or ``"val"``.
        target: Accuracy to reach, a fraction of 1.
        title: Title of the whole figure.
    """
    figure = _figure(10, 4.4, title)
    loss, accuracy = figure.subplots(1, 2)
    epochs = [record.epoch for record in records]
    style = {"markersize": 4 if len(records) <= 40 else 0, "linewidth": 1.8, "clip_on": False}
    for axes, metric, unit in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
        for label, prefix, look in (
            ("train (augmented)", "train", {"color": VERMILLION, "linestyle": "--", "marker": "s"}),
            (split, "eval", {"color": BLUE, "linestyle": "-", "marker": "o"}),
        ):
            values = [unit * getattr(record, f"{prefix}_{metric}") for record in records]
            axes.plot(epochs, values, label=label, **look, **style)
        _dress(axes, "epoch", metric if unit == 1 else f"{metric}, %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))

    accuracy.axhline(100 * target, color=GREY, linestyle=(0, (6, 4)), linewidth=1.2, zorder=1)
    # In the margin: inside, a run of some length would always pass through the words.
    margin = accuracy.get_yaxis_transform()
    accuracy.text(1.02, 100 * target, f"{100 * target:g} %\ntarget", transform=margin, va="center", color=GREY)
    accuracy.set_ylim(top=min(accuracy.get_ylim()[1], 100))

    final = records[-1]
    finite = [record for record in records if math.isfinite(record.eval_accuracy)]
    best = max(finite, key=lambda record: record.eval_accuracy, default=final)
    # A ring and a diamond that fits inside it: neighbours among 200 epochs lie on top of each other. Their values stand
    # in the legend for the same reason.
    ring = {"marker": "o", "markersize": 13, "markerfacecolor": "none", "markeredgewidth": 1.8}
    diamond = {"marker": "D", "markersize": 6}
    marks = [("best = final", final, ring)] if best is final else [("best", best, ring), ("final", final, diamond)]
    for name, record, look in marks:
        label = f"{name}: {_percent(record.eval_accuracy, 2)} (epoch {record.epoch})"
        point = [record.epoch], [100 * record.eval_accuracy]
        accuracy.plot(*point, label=label, color="black", linestyle="none", clip_on=False, zorder=4, **look)
    _legend(figure, accuracy, columns=4)
    return figure


def lr_schedule(lrs: Sequence[float], *, steps_per_epoch: int, title: str = "") -> Figure:
    """Learning rate over optimizer steps, with the epochs along the top.

    Args:
        lrs: Learning rate of each step, at least one.
        steps_per_epoch: Optimizer steps in an epoch.
        title: Title of the whole figure.
    """
    figure = _figure(8, 4, title)
    axes = figure.subplots()
    axes.plot(lrs, color=BLUE, linewidth=2)
    peak = int(np.argmax(lrs))
    axes.plot([peak], [lrs[peak]], color=VERMILLION, marker="o", markersize=8, linestyle="none")
    place = peak / len(lrs)
    axes.annotate(
        f"peak {lrs[peak]:.3g} at step {peak} (epoch {peak / steps_per_epoch:.3g})",
        (peak, lrs[peak]),
        xytext=(0, 9),
        textcoords="offset points",
        ha="left" if place < 0.3 else "right" if place > 0.7 else "center",
        fontsize=FONT,
    )
    axes.margins(y=0.15)
    _dress(axes, "step", "learning rate")
    epochs = axes.secondary_xaxis("top", functions=(lambda step: step / steps_per_epoch, lambda e: e * steps_per_epoch))
    epochs.set_xlabel("epoch", fontsize=FONT)
    return figure


def image_grid(images: np.ndarray, captions: Sequence[str], *, title: str = "", columns: int = 8) -> Figure:
    """Enlarged images, row by row, each above its caption.

    Args:
        images: uint8 ``[N, 32, 32, 3]``; N may be 0.
        captions: One an image; lines too long for a column are wrapped.
        title: Title of the whole figure.
        columns: Images in a full row.
    """
    if not len(captions):
        figure = _figure(5, 1.5, title)
        figure.text(0.5, 0.4, "nothing to show", ha="center", va="center", fontsize=FONT, color=GREY)
        return figure
    texts = ["\n".join(textwrap.fill(line, 15) for line in caption.splitlines()) for caption in captions]
    columns = min(columns, len(texts))
    rows = math.ceil(len(texts) / columns)
    side = 32 * 5 / DPI  # inches; whole device pixels for every image pixel keep the enlargement even
    across, down = 190 / DPI, side + 0.15 + 0.16 * max(text.count("\n") + 1 for text in texts)
    width, height = columns * across, rows * down + (0.5 if title else 0.1)
    figure = _figure(width, height, title, layout="none")
    for index, (image, text) in enumerate(zip(images, texts, strict=True)):
        row, column = divmod(index, columns)
        left, bottom = (column + 0.5) * across - side / 2, (rows - row) * down - side
        axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
        axes.imshow(image, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(text, fontsize=FONT - 2)
    return figure


def confusion(matrix: np.ndarray, classes: Sequence[str], *, title: str = "") -> Figure:
    """Counts of true against predicted classes, and beside them each class's accuracy.

    Args:
        matrix: int ``[C, C]``, images of true class (row) taken for the predicted class (column).
        classes: C names.
        title: Title of the whole figure.
    """
    count = len(classes)
    totals = matrix.sum(axis=1)
    shares = matrix / np.maximum(totals, 1)[:, None]
    recall = np.where(totals > 0, shares.diagonal(), np.nan)

    figure = _figure(3.6 + 0.55 * count, 1.8 + 0.48 * count, title)
    cells, bars = figure.subplots(1, 2, sharey=True, width_ratios=(count, max(1.0, 0.2 * count)))
    # A linear scale would leave everything off the diagonal white: most mistakes are under 5 % of their row.
    norm = PowerNorm(0.4, vmin=0, vmax=1)
    cells.imshow(shares, cmap="Blues", norm=norm, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        dark = norm(share) > 0.6
        ink = "white" if dark else "black" if matrix[row, column] else "#A0A0A0"
        cells.text(column, row, str(matrix[row, column]), ha="center", va="center", color=ink, fontsize=FONT - 1)
    _dress(cells, "predicted", "true")
    cells.grid(False)
    cells.set_xticks(range(count), classes, rotation=45, ha="right", rotation_mode="anchor")
    cells.set_yticks(range(count), classes)
    cells.set_title("counts; colour: share of the row", fontsize=FONT)

    bars.barh(range(count), np.nan_to_num(100 * recall), color=BLUE, height=0.6)
    for row, value in enumerate(recall):
        bars.text(106, row, _percent(value, 1), va="center", fontsize=FONT - 1)
    _dress(bars, "accuracy, %", "")
    bars.set(xlim=(0, 100), xticks=(0, 50, 100))
    bars.tick_params(left=False, labelleft=False)
    return figure


def lr_range(
    lrs: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    *,
    suggestions: Mapping[str, float],
    recommended: str | None,
    title: str = "",
) -> Figure:
    """Loss against learning rate in a range test, with the suggestions marked on the smoothed curve.

    Args:
        lrs: Ascending learning rates, one a step.
        losses: Loss of each step; may explode or turn NaN at the end.
        smoothed: The same, smoothed.
        suggestions: Learning rate of each rule that found one; may be empty.
        recommended: The rule to follow, a key of ``suggestions``; None where no rule is to be trusted.
        title: Title of the whole figure.
    """
    figure = _figure(8, 4.8, title)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.plot(lrs, losses, ".", color="#B0B0B0", markersize=4, label="loss of one batch")
    axes.plot(lrs, smoothed, color=BLUE, linewidth=2.2, label="smoothed")
    colours, markers = cycle((VERMILLION, GREEN, PURPLE, ORANGE)), cycle("osD^")
    # Open and ever smaller, so that rules that agree remain visible inside each other.
    sizes = cycle((14, 11, 8, 5))
    for (name, lr), colour, marker, size in zip(suggestions.items(), colours, markers, sizes, strict=False):
        height = np.interp(math.log(lr), np.log(lrs), smoothed)
        label = f"{name}: {lr:.3g}"
        look = {"marker": marker, "markersize": size, "markeredgewidth": 2, "markerfacecolor": "none"}
        axes.plot([lr], [height], color=colour, label=label, linestyle="none", zorder=4, **look)
        if name == recommended:
            axes.axvline(lr, color=colour, linestyle="--", linewidth=1.8, zorder=1)
    verdict = f"recommended: {suggestions[recommended]:.3g} ({recommended})" if recommended else "no recommendation"
    axes.set_title(verdict, fontsize=FONT)
    _limit_to_bowl(axes, np.asarray(losses), np.asarray(smoothed))
    _dress(axes, "learning rate", "loss")
    _legend(figure, axes, columns=3)
    return figure


def _limit_to_bowl(axes: Axes, losses: np.ndarray, smoothed: np.ndarray) -> None:
    """Limits y to the way down to the minimum: what comes after it may be a million times as high."""
    losses, smoothed = losses[np.isfinite(losses)], smoothed[np.isfinite(smoothed)]
    if not len(smoothed):
        return
    low, high = smoothed.min(), smoothed[: smoothed.argmin() + 1].max()
    margin = max(0.3 * (high - low), 0.1 * abs(low)) or 1.0  # a curve that only rises has no way down
    axes.set_ylim(min(low, *losses) - margin / 3, high + margin)


def _percent(fraction: float, digits: int) -> str:
    return f"{100 * fraction:.{digits}f} %" if math.isfinite(fraction) else "\N{EN DASH}"


def _figure(width: float, height: float, title: str, layout: str = "constrained") -> Figure:
    """An empty figure, sizes in inches."""
    figure = Figure((width, height), layout=layout, facecolor="white")
    if title:
        figure.suptitle(
            title, fontsize=FONT + 2, fontweight="bold", **({"y": 1 - 0.1 / height} if layout == "none" else {})
        )
    return figure


def _dress(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel, fontsize=FONT)
    axes.set_ylabel(ylabel, fontsize=FONT)
    axes.grid(color="#E0E0E0", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False, fontsize=FONT
    )
