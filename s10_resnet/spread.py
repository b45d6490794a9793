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
    interval = None
    if min(len(values), len(reference)) > 1:
        if np.ptp(values) == np.ptp(reference) == 0:
            interval = [gap, gap]  # Welch's degrees of freedom would be 0 / 0
        else:
            low, high = stats.ttest_ind(values, reference, equal_var=False).confidence_interval(CONFIDENCE)
            interval = [float(low), float(high)]
    return {"difference": gap, "interval": interval}
