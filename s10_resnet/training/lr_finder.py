"""The learning rate range test (Smith 2017, https://arxiv.org/abs/1506.01186) and the rules that read its curve.

The test increases the learning rate at every step and records the loss. The usual rules were made for SGD, whose loss
diverges soon after its best rate. Adam's does not: its curve has a wide, flat minimum, for which those rules recommend
rates several times too low. `flat_minimum` reads such a curve. results/LOG.md has the evidence.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from s10_resnet.errors import EnvironmentFailure
from s10_resnet.utils.runtime import Runtime

# With the first two, the recommendation differs least between seeds; the third is from trainings: results/LOG.md.
BANDWIDTH = 0.3  # of the smoothing, in decades: by learning rate, so that more steps do not change the result
FLAT_FRACTION = 0.15
FLAT_POSITION = 1 / 3  # rates in the upper half are good for the 100 steps of the test, and too high for a training
MIN_STEPS = 10  # of a curve that can be read
MIN_FALL = 0.05  # of the loss, as a fraction of the first
MIN_FALL_IN_NOISE = 4.0  # the same, as a multiple of the standard error of a difference between smoothed losses
DIVERGENCE_FACTOR = 5  # a loss that is so many times the lowest so far ends the test
MAX_POINTS = 1000  # that are smoothed and read, which takes quadratic time


@dataclass(frozen=True)
class LRCurve:
    """Learning rates in increasing geometric order and the loss of the step taken with each."""

    lrs: np.ndarray  # float64 [S]
    losses: np.ndarray  # float64 [S], finite
    non_finite: bool = False  # whether the test ended because the next loss was NaN or infinite


@dataclass(frozen=True)
class Suggestion:
    """What the rules read from a curve."""

    suggestions: dict[str, float]  # learning rate by rule; empty if the curve has no minimum
    recommended: str | None  # name of the rule
    reason: str  # in one sentence

    @property
    def max_lr(self) -> float | None:
        """The recommended learning rate."""
        return None if self.recommended is None else self.suggestions[self.recommended]


class _NonFiniteLossError(Exception):
    pass


def range_test(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    criterion: nn.Module,
    runtime: Runtime,
    *,
    start_lr: float,
    end_lr: float,
    steps: int,
    on_step: Callable[[int, float, float], None] = lambda step, lr, loss: None,
) -> LRCurve:
    """Increases the learning rate geometrically with `torch_lr_finder`, and restores model and optimizer.

    Args:
        model: Restored to its weights and buffers.
        batches: At least ``steps`` batches.
        optimizer: A new one, without a scheduler.
        criterion: From logits and labels to the mean loss.
        runtime: Device and precision.
        start_lr: Learning rate of the first step.
        end_lr: Learning rate of the last step.
        steps: Number of steps.
        on_step: Called after each step but the last with its number, from 1, its learning rate and its loss.

    Returns:
        The curve up to the last step, or to the one before the loss stopped being finite, or to the one whose loss was
        above five times the minimum.

    Raises:
        EnvironmentFailure: If matplotlib cannot be imported.
    """
    # Here, because it imports matplotlib, which raises errors for some settings of the user.
    with warnings.catch_warnings(action="ignore"):  # in a notebook it asks for a progress bar that is never drawn
        try:
            from torch_lr_finder import LRFinder, TrainDataLoaderIter
        except (OSError, ValueError) as error:
            raise EnvironmentFailure(f"torch_lr_finder needs matplotlib, whose import failed: {error}") from error

    def finite_loss(logits: Tensor, labels: Tensor) -> Tensor:
        loss = criterion(logits.float(), labels)
        if not torch.isfinite(loss):  # the library would go on to the last step
            raise _NonFiniteLossError
        return loss

    finder = LRFinder(
        model,
        optimizer,
        finite_loss,
        device=runtime.device,
        amp_backend="torch",
        amp_config=runtime.autocast_options,
        grad_scaler=runtime.new_scaler(),
    )
    stdout = sys.stdout

    def observed() -> Iterator[tuple[Tensor, Tensor]]:
        for step, batch in enumerate(batches):
            if step:
                with contextlib.redirect_stdout(stdout):
                    on_step(step, finder.history["lr"][-1], finder.history["loss"][-1])
            yield batch

    loader, non_finite = TrainDataLoaderIter(observed(), auto_reset=False), False
    try:
        with (
            open(os.devnull, "w") as devnull,  # noqa: PTH123 - the library prints, and draws a bar of its own
            contextlib.redirect_stdout(devnull),
            contextlib.redirect_stderr(devnull),
        ):
            finder.range_test(
                loader,
                start_lr=start_lr,
                end_lr=end_lr,
                num_iter=steps,
                smooth_f=0,
                diverge_th=DIVERGENCE_FACTOR,
            )
    except _NonFiniteLossError:
        non_finite = True
    finally:
        finder.reset()
    return LRCurve(np.array(finder.history["lr"]), np.array(finder.history["loss"]), non_finite)


def smooth(curve: LRCurve, bandwidth: float = BANDWIDTH) -> np.ndarray:
    """Returns the losses averaged over learning rates with a Gaussian of ``bandwidth`` decades, float64 ``[S]``.

    A loss above `DIVERGENCE_FACTOR` times the lowest until then counts as that: how far a diverging loss got in its
    last step says nothing, and would pull the minimum to lower rates.
    """
    x = np.log10(curve.lrs)
    losses = np.minimum(curve.losses, DIVERGENCE_FACTOR * np.minimum.accumulate(curve.losses))
    if len(x) > MAX_POINTS:  # there is a weight for every pair of points
        parts = np.array_split(np.stack([x, losses]), MAX_POINTS, axis=1)
        centers, means = np.array([part.mean(axis=1) for part in parts]).T
        return np.interp(x, centers, _average(centers, means, bandwidth))
    return _average(x, losses, bandwidth)


def _average(x: np.ndarray, y: np.ndarray, bandwidth: float) -> np.ndarray:
    weights = np.exp(-0.5 * ((x[:, None] - x[None, :]) / bandwidth) ** 2)  # [S, S]
    return weights @ y / weights.sum(axis=1)


def noise_of_fall(curve: LRCurve, bandwidth: float = BANDWIDTH) -> float:
    """Returns the standard error of the difference between the first and another of the smoothed losses.

    The noise of single losses is taken from the differences of neighbors, by their median, which a few large ones do
    not move. A Gaussian over losses at a distance of ``d`` averages ``2 * sqrt(pi) * bandwidth / d`` of them, and half
    as many at the end of the curve.
    """
    noise = np.median(np.abs(np.diff(curve.losses))) / (0.6745 * math.sqrt(2))
    spacing = math.log10(curve.lrs[-1] / curve.lrs[0]) / (len(curve.lrs) - 1)  # decades
    averaged = max(1.0, 2 * math.sqrt(math.pi) * bandwidth / spacing)
    return float(noise * math.sqrt(1 / averaged + 2 / averaged))


def steepest(lrs: np.ndarray, losses: np.ndarray) -> float:
    """The rate at which the loss falls fastest per decade, before the minimum."""
    end = int(losses.argmin()) + 1
    slopes = np.gradient(losses, np.log10(lrs))
    return float(lrs[slopes[:end].argmin()])


def min_over_10(lrs: np.ndarray, losses: np.ndarray) -> float:
    """A tenth of the rate with the lowest loss."""
    return float(lrs[losses.argmin()] / 10)


def valley(lrs: np.ndarray, losses: np.ndarray) -> float:
    """The middle of the longest decreasing subsequence of losses (the rule of fastai's ``lr_find``)."""
    length = np.ones(len(losses), int)  # of the longest decreasing subsequence that ends here
    before = np.full(len(losses), -1)
    for i in range(len(losses)):
        for j in np.flatnonzero(losses[:i] > losses[i]):
            if length[j] + 1 > length[i]:
                length[i], before[i] = length[j] + 1, j
    run = [int(length.argmax())]
    while before[run[-1]] >= 0:
        run.append(int(before[run[-1]]))
    return float(lrs[run[::-1][len(run) // 2]])


def flat_minimum(
    lrs: np.ndarray, losses: np.ndarray, fraction: float = FLAT_FRACTION, position: float = FLAT_POSITION
) -> float:
    """The rate at ``position``, from 0 to 1 in logarithms, between the ends of the flat part around the minimum.

    The flat part are the rates whose loss is within ``fraction`` of the fall from the first loss to the minimum. Where
    the minimum is flat, its exact place is chance; the ends of the flat part are not. They are interpolated between
    steps.
    """
    x, lowest = np.log10(lrs), int(losses.argmin())
    level = losses[lowest] + fraction * (losses[0] - losses[lowest])
    outside = np.flatnonzero(losses > level)
    before, after = outside[outside < lowest], outside[outside > lowest]
    left = _crossing(x, losses, level, before[-1], before[-1] + 1) if len(before) else x[0]
    right = _crossing(x, losses, level, after[0] - 1, after[0]) if len(after) else x[-1]
    return float(10 ** (left + position * (right - left)))


def _crossing(x: np.ndarray, y: np.ndarray, level: float, i: int, j: int) -> float:
    """Returns where the straight line through points i and j reaches a level between them."""
    return float(x[i] + (level - y[i]) / (y[j] - y[i]) * (x[j] - x[i]))


RULES = {"steepest": steepest, "min_over_10": min_over_10, "valley": valley, "flat_minimum": flat_minimum}


def suggest(curve: LRCurve) -> Suggestion:
    """Applies all rules to the smoothed curve and recommends `flat_minimum`, if the curve has a minimum."""
    if len(curve.lrs) < MIN_STEPS:
        reason = f"the loss diverged after {len(curve.lrs)} steps: lower --lr-finder-start-lr"
        return Suggestion({}, None, reason)
    smoothed = smooth(curve)
    lowest = smoothed.argmin()
    fall = smoothed[0] - smoothed[lowest]
    if fall < MIN_FALL * smoothed[0]:
        return Suggestion({}, None, "the loss never falls by 5 %: use more --lr-finder-steps")
    if fall < MIN_FALL_IN_NOISE * noise_of_fall(curve):
        reason = "the loss never falls by more than its noise explains: use more --lr-finder-steps or a larger batch"
        return Suggestion({}, None, reason)
    if lowest == len(smoothed) - 1:
        reason = "the loss still falls at the last learning rate: raise --lr-finder-end-lr"
        if curve.non_finite:
            reason = (
                f"the loss was still falling at a learning rate of {curve.lrs[-1]:.2e} when it became NaN or infinite: "
                "try --precision fp32"
            )
        return Suggestion({}, None, reason)
    every = math.ceil(len(smoothed) / MAX_POINTS)
    lrs, losses = curve.lrs[::every], smoothed[::every]
    return Suggestion(
        {name: float(f"{rule(lrs, losses):.3g}") for name, rule in RULES.items()},
        "flat_minimum",
        "flat_minimum is a third of the way, on the logarithmic axis, into the learning rates whose loss is close to "
        "the minimum",
    )
