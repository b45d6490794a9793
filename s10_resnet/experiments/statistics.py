"""Statistics of repeated runs: mean, standard deviation, confidence intervals. The only importer of scipy."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
MIN_VALUES = 3  # of two values, Student's t has one degree of freedom: an interval 18 standard deviations wide


def summarize(values: Sequence[float]) -> dict[str, Any]:
    """Returns mean, sample standard deviation and the 95 % confidence interval of the mean (Student's t).

    Args:
        values: At least one.

    Returns:
        ``n``, ``mean``, ``std`` (None for a single value), ``interval`` as ``[low, high]`` (None for fewer than three
        values) and ``values``.
    """
    n, mean = len(values), float(np.mean(values))
    std = float(np.std(values, ddof=1)) if n > 1 else None
    interval = None
    if std is not None and n >= MIN_VALUES:
        # A scale of 0 would give NaN.
        interval = [*map(float, stats.t.interval(CONFIDENCE, n - 1, mean, std / n**0.5))] if std else [mean, mean]
    return {"n": n, "mean": mean, "std": std, "interval": interval, "values": list(values)}


def welch_interval(values: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """Returns how far the mean of some values is above that of others, with its 95 % confidence interval.

    The interval is that of Welch's t-test (Welch, 1947, "The generalization of 'Student's' problem when several
    different population variances are involved"), which does not assume equal variances.

    Args:
        values: At least one.
        reference: At least one.

    Returns:
        ``difference``, and ``interval`` as ``[low, high]`` (None where a side has fewer than three values).
    """
    difference = float(np.mean(values) - np.mean(reference))
    interval = None
    if min(len(values), len(reference)) >= MIN_VALUES:
        if np.ptp(values) == np.ptp(reference) == 0:
            interval = [difference, difference]  # the degrees of freedom would be 0 / 0
        else:
            # The warning is about values that are all equal on one side.
            with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
                test = stats.ttest_ind(values, reference, equal_var=False)
            interval = [*map(float, test.confidence_interval(CONFIDENCE))]
    return {"difference": difference, "interval": interval}
