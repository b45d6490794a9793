"""What repeated runs come to together. The only importer of scipy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


def describe(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation, and the 95 % confidence interval of the mean by Student's t.

    Returns:
        ``n``, ``mean``, ``std``, ``interval`` from low to high, and ``values``; of a single value the second and third
        are None.
    """
    n, mean = len(values), float(np.mean(values))
    std = float(np.std(values, ddof=1)) if n > 1 else None
    interval = None
    if std is not None:
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std / n**0.5
        interval = [mean - half, mean + half]
    return {"n": n, "mean": mean, "std": std, "interval": interval, "values": list(values)}


def difference(values: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """How much higher the mean of some values is than that of others, with its 95 % interval by Welch's t.

    Returns:
        ``difference``, and ``interval`` from low to high, which is None where a side has a single value.
    """
    gap = float(np.mean(values) - np.mean(reference))
    sides = (values, reference)
    if min(map(len, sides)) < 2:
        return {"difference": gap, "interval": None}
    errors = [float(np.var(side, ddof=1)) / len(side) for side in sides]  # squared, of the means
    if not sum(errors):
        return {"difference": gap, "interval": [gap, gap]}  # the degrees of freedom would be 0 / 0
    freedom = sum(errors) ** 2 / sum(error**2 / (len(side) - 1) for error, side in zip(errors, sides, strict=True))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * sum(errors) ** 0.5
    return {"difference": gap, "interval": [gap - half, gap + half]}
