import numpy as np
import pytest

from s10_resnet.experiments import statistics as spread


def test_the_interval_is_that_of_students_t():
    # Of 10 values with mean 94.5 and standard deviation 0.15: 94.5 +- 2.2622 * 0.15 / sqrt(10)
    offsets = np.linspace(-1, 1, 10)
    values = 94.5 + 0.15 * offsets / offsets.std(ddof=1)
    one = spread.describe(values.tolist())
    assert one["mean"] == pytest.approx(94.5)
    assert one["std"] == pytest.approx(0.15)
    assert one["interval"] == pytest.approx([94.5 - 0.10731, 94.5 + 0.10731], abs=1e-4)


def test_a_single_value_has_no_spread():
    assert spread.describe([0.9]) == {"n": 1, "mean": 0.9, "std": None, "interval": None, "values": [0.9]}


def test_a_difference_has_the_interval_of_welchs_t():
    # Means 3 and 6, squared standard errors 1/3 and 4/3, and so 2.94 degrees of freedom; t is found in no table, so
    # that it is worked out here by integrating its density.
    a, b = [2.0, 3.0, 4.0], [4.0, 6.0, 8.0]
    freedom = (1 / 3 + 4 / 3) ** 2 / ((1 / 3) ** 2 / 2 + (4 / 3) ** 2 / 2)
    t = np.linspace(0, 2000, 4_000_001)
    density = (1 + t**2 / freedom) ** (-(freedom + 1) / 2)
    share = np.cumsum(density) / density.sum()
    half = t[np.searchsorted(share, 0.95)] * (1 / 3 + 4 / 3) ** 0.5
    one = spread.difference(b, a)
    assert one["difference"] == pytest.approx(3)
    assert one["interval"] == pytest.approx([3 - half, 3 + half], rel=2e-3)
    assert spread.difference(a, b)["interval"] == pytest.approx([-3 - half, -3 + half], rel=2e-3)


@pytest.mark.parametrize(("values", "reference"), [([0.9], [0.8]), ([0.9], [0.8, 0.8]), ([0.9, 0.9], [0.8])])
def test_the_difference_to_a_single_value_has_no_interval(values, reference):
    assert spread.difference(values, reference) == {"difference": pytest.approx(0.1), "interval": None}


def test_values_that_do_not_differ_among_themselves():
    assert spread.difference([0.9, 0.9], [0.5, 0.5]) == {"difference": pytest.approx(0.4), "interval": [0.4, 0.4]}
