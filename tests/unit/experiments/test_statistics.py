import numpy as np
import pytest

from s10_resnet.experiments.statistics import summarize, welch_interval


def test_the_interval_of_a_mean_is_that_of_students_t():
    # Of 10 values with mean 94.5 and standard deviation 0.15: 94.5 +- 2.2622 * 0.15 / sqrt(10), by a table of t
    offsets = np.linspace(-1, 1, 10)
    values = (94.5 + 0.15 * offsets / offsets.std(ddof=1)).tolist()
    summary = summarize(values)
    assert (summary["n"], summary["values"]) == (10, values)
    assert summary["mean"] == pytest.approx(94.5)
    assert summary["std"] == pytest.approx(0.15)
    assert summary["interval"] == pytest.approx([94.5 - 0.10731, 94.5 + 0.10731], abs=1e-4)


@pytest.mark.parametrize(
    ("values", "std", "interval"),
    [
        ([0.5], None, None),
        ([0.25, 0.75], 0.125**0.5, None),
        ([1.0, 2.0, 3.0], 1.0, [2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5]),  # t of 2 degrees of freedom
        ([0.5] * 3, 0.0, [0.5, 0.5]),
        ([0.1] * 3, pytest.approx(0, abs=1e-15), pytest.approx([0.1, 0.1])),  # whose sum is rounded
    ],
)
def test_few_or_equal_values(values, std, interval):
    summary = summarize(values)
    assert summary["std"] == (std if std is None else pytest.approx(std))
    assert summary["interval"] == (interval if interval is None else pytest.approx(interval, abs=1e-4))


def test_the_interval_of_a_difference_is_that_of_welchs_t():
    # Means 3 and 6, squared standard errors 1/3 and 4/3, and so 2.94 degrees of freedom; t is found in no table, so
    # that it is worked out here by integrating its density.
    a, b = [2.0, 3.0, 4.0], [4.0, 6.0, 8.0]
    freedom = (1 / 3 + 4 / 3) ** 2 / ((1 / 3) ** 2 / 2 + (4 / 3) ** 2 / 2)
    t = np.linspace(0, 2000, 2_000_001)
    density = (1 + t**2 / freedom) ** (-(freedom + 1) / 2)
    share = np.cumsum(density) / density.sum()
    half = t[np.searchsorted(share, 0.95)] * (1 / 3 + 4 / 3) ** 0.5
    assert welch_interval(b, a) == {"difference": 3, "interval": pytest.approx([3 - half, 3 + half], rel=2e-3)}
    assert welch_interval(a, b) == {"difference": -3, "interval": pytest.approx([-3 - half, -3 + half], rel=2e-3)}


def test_with_many_values_the_interval_is_that_of_a_normal_distribution():
    values = np.linspace(0, 1, 10_000)
    half = 1.96 * values.std() * (2 / 10_000) ** 0.5
    assert welch_interval(values + 0.5, values)["interval"] == pytest.approx([0.5 - half, 0.5 + half], abs=1e-5)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 3), (2, 3), (3, 2)])
def test_the_difference_of_few_values_has_no_interval(sizes):
    values, reference = [0.75] * sizes[0], [0.5] * sizes[1]
    assert welch_interval(values, reference) == {"difference": 0.25, "interval": None}


def test_the_difference_of_equal_values():
    assert welch_interval([0.75] * 3, [0.5] * 4) == {"difference": 0.25, "interval": [0.25, 0.25]}
    # One side alone: its mean is exact, and the interval is that of the other side's mean.
    low, high = summarize([1.0, 2.0, 3.0])["interval"]
    assert welch_interval([1.0, 2.0, 3.0], [2.0] * 3)["interval"] == pytest.approx([low - 2, high - 2])
    assert welch_interval([2.0] * 3, [1.0, 2.0, 3.0])["interval"] == pytest.approx([low - 2, high - 2])
