"""How much the rules differ between seeds on the curves in lr_finder.csv: ``python results/lr-range-test/study.py``.

At the end, the recommendation of today, a third of the way into the flat part, on all curves there are.
"""

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from s10_resnet.training import lr_finder
from s10_resnet.training.lr_finder import LRCurve

FIRST_EIGHT = [0, 1, 2, 3, 5, 6, 7, 8]  # the seeds that were there when the rule was first changed
Rule = Callable[[LRCurve], float]
middle = partial(lr_finder.flat_minimum, position=0.5)  # flat_minimum as it was until version 0.2


def read() -> list[LRCurve]:
    """The curves of seeds 0 to 9."""
    with (Path(__file__).parent / "lr_finder.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lrs = np.array([float(row["lr"]) for row in rows])
    return [LRCurve(lrs, np.array([float(row[f"loss_seed_{seed}"]) for row in rows])) for seed in range(10)]


def read_curve(path: Path) -> LRCurve:
    """The curve of a file that find_lr.py wrote."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return LRCurve(*(np.array([float(row[name]) for row in rows]) for name in ("lr", "loss")))


def average(curves: list[LRCurve]) -> LRCurve:
    """The mean loss of several tests at each learning rate that all of them reached."""
    shortest = min(curves, key=lambda curve: len(curve.lrs))
    return LRCurve(shortest.lrs, np.mean([curve.losses[: len(shortest.lrs)] for curve in curves], axis=0))


def smoothed(rule: Callable, bandwidth: float) -> Rule:
    """A rule that reads the curve smoothed."""
    return lambda curve: rule(curve.lrs, lr_finder.smooth(curve, bandwidth))


def flat_part(losses: np.ndarray, fraction: float) -> tuple[np.ndarray, float]:
    """The steps around the minimum that lie below a line, and the line."""
    least = int(losses.argmin())
    line = losses[least] + fraction * (losses[0] - losses[least])
    outside = np.flatnonzero(losses > line)
    first = max(outside[outside < least], default=-1) + 1
    return np.arange(first, min(outside[outside > least], default=len(losses))), line


def middle_of_steps(lrs: np.ndarray, losses: np.ndarray, fraction: float) -> float:
    """The first version of flat_minimum: the middle of the outermost steps below the line."""
    steps, _ = flat_part(losses, fraction)
    return float(np.sqrt(lrs[steps[0]] * lrs[steps[-1]]))


def weighted_middle(lrs: np.ndarray, losses: np.ndarray, fraction: float) -> float:
    """Steps weighted by how far they lie below the line."""
    steps, line = flat_part(losses, fraction)
    return float(10 ** np.average(np.log10(lrs[steps]), weights=line - losses[steps]))


def parabola(curve: LRCurve, bandwidth: float, fraction: float) -> float:
    """Vertex of a parabola through the raw losses of the flat part and two steps on either side."""
    steps, _ = flat_part(lr_finder.smooth(curve, bandwidth), fraction)
    part = slice(max(0, steps[0] - 2), steps[-1] + 3)
    square, slope, _ = np.polyfit(np.log10(curve.lrs[part]), curve.losses[part], 2)
    return float(10 ** (-slope / (2 * square)))


def print_range(name: str, picks: list[float]) -> None:
    """Prints the range of some picks."""
    print(f"{name:<52} {min(picks):.2e} to {max(picks):.2e}, a factor of {max(picks) / min(picks):.2f}")


def resampled(curves: list[LRCurve], length: int, count: int) -> list[LRCurve]:
    """Curves of the ten's mean shape, with noise put together from pieces of theirs, so many steps long."""
    rng, lrs = np.random.default_rng(0), curves[0].lrs
    losses = np.array([curve.losses for curve in curves])
    shape = np.mean([lr_finder.smooth(curve, 0.1) for curve in curves], axis=0)
    noise = (losses - losses.mean(0)) * (len(curves) / (len(curves) - 1)) ** 0.5
    starts = range(0, len(lrs), length)
    return [
        LRCurve(lrs, shape + np.concatenate([noise[rng.integers(len(curves)), at : at + length] for at in starts]))
        for _ in range(count)
    ]


def print_spread(name: str, picks: list[float]) -> None:
    """Prints the standard deviation of picks, and the spread within groups of ten."""
    logs = np.log10(picks)
    factors = 10 ** np.ptp(logs.reshape(-1, 10), axis=1)
    spread = f"of ten a factor of {np.median(factors):.2f} (median), within 1.5 in {(factors <= 1.5).mean():.0%}"
    print(f"{name:<52} standard deviation {logs.std():.3f} decades; {spread}")


def main() -> None:
    """Prints the picks of each rule."""
    curves = read()
    for name, rule in (
        ("steepest", lr_finder.steepest),
        ("min_over_10", lr_finder.min_over_10),
        ("valley", lr_finder.valley),
        ("minimum", lambda lrs, losses: lrs[losses.argmin()]),
    ):
        print_range(f"{name}, 0.15", [smoothed(rule, 0.15)(curve) for curve in curves])
    print_range("minimum, unsmoothed", [curve.lrs[curve.losses.argmin()] for curve in curves])
    print_range(
        "flat_minimum 0.1, 0.15, between steps",
        [smoothed(partial(middle_of_steps, fraction=0.1), 0.15)(c) for c in curves],
    )
    chosen = [smoothed(partial(middle, fraction=0.2), 0.2)(curve) for curve in curves]
    print_range("flat_minimum 0.2, 0.2, the first eight", [chosen[seed] for seed in FIRST_EIGHT])
    print_range("flat_minimum 0.2, 0.2", chosen)
    for fraction, bandwidth in ((0.15, 0.3), (0.1, 0.3), (0.2, 0.3), (0.15, 0.2), (0.15, 0.4)):
        print_range(
            f"flat_minimum {fraction}, {bandwidth}",
            [smoothed(partial(middle, fraction=fraction), bandwidth)(curve) for curve in curves],
        )
    for fraction in (0.15, 0.2):
        rule = smoothed(partial(weighted_middle, fraction=fraction), 0.3)
        print_range(f"weighted middle {fraction}, 0.3", [rule(curve) for curve in curves])
    for bandwidth in (0.15, 0.2, 0.3):
        print_range(f"parabola 0.15, {bandwidth}", [parabola(curve, bandwidth, 0.15) for curve in curves])

    taken = smoothed(middle, lr_finder.BANDWIDTH)
    for length in (20, 25):
        print_spread(f"1,000 resampled, pieces of {length}", [taken(c) for c in resampled(curves, length, 1000)])
    for tests in (2, 3):
        drawn = resampled(curves, 20, 1000 * tests)
        groups = [drawn[i : i + tests] for i in range(0, len(drawn), tests)]
        print_spread(f"averages of {tests}, pieces of 20", [taken(average(group)) for group in groups])

    here = Path(__file__).parent
    default = [read_curve(path) for path in sorted((here / "default").glob("*.csv"))]
    rows = [json.loads(line) for line in (here.parent / "accuracy" / "rows.jsonl").read_text().splitlines()]
    on_gpu = [LRCurve(np.array(row["lrs"]), np.array(row["losses"])) for row in rows if "lrs" in row]
    for position in (0.5, 1 / 3):
        rule = smoothed(partial(lr_finder.flat_minimum, position=position), lr_finder.BANDWIDTH)
        for name, some in (("version 0.1", curves), ("version 0.2, CPU", default), ("version 0.2, H200", on_gpu)):
            print_range(f"position {position:.2f}, {name}, n = {len(some)}", [rule(curve) for curve in some])


if __name__ == "__main__":
    main()
