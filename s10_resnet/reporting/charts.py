"""Curves as the paths and words of a web page's SVG charts, and the values that its script shows of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

MAX_POINTS = 10_000  # of a curve to point at
MAX_DRAWN = 1_000  # of a curve that is drawn, some 400 units wide
MAX_DOTS = 40  # a curve with more points goes without markers
WIDTH, HEIGHT = 480, 300  # of a chart, in the units of its SVG
LEFT, RIGHT, TOP, BOTTOM = 58, 466, 26, 252  # of the area of its curves


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


def chart(
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
    kept = thinned(next(iter(series.values())), MAX_POINTS)
    for (name, look), values in series.items():
        drawn = thinned(values, MAX_DRAWN)
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


def thinned(values: Sequence[float], most: int) -> list[int]:
    """Places of at most ``most`` values, evenly spread, the ends and the largest among them."""
    if len(values) <= most:
        return list(range(len(values)))
    spread = np.linspace(0, len(values) - 1, most - 1).round().astype(int)
    return sorted({*spread.tolist(), int(np.nan_to_num(values, nan=-np.inf).argmax())})
