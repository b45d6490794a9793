"""The learning-rate range test, and the rules that read its curve.

The test (Smith 2017, https://arxiv.org/abs/1506.01186) raises the learning rate at every step and watches the loss.
The classic rules were made for SGD, whose loss explodes soon after its best rate. Adam's does not: its curve is a wide,
flat bowl, on which those rules land ten times too low or thirty times too high. `bowl` reads such a curve.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

with warnings.catch_warnings(action="ignore"):  # in a notebook it would like another kind of bar, which is never drawn
    from torch_lr_finder import LRFinder, TrainDataLoaderIter

from s10_resnet.training.loop import Criterion
from s10_resnet.utils.runtime import Runtime

# Of these two, values about as large as they are make the bowl's middle steadiest from seed to seed: results/LOG.md.
BANDWIDTH = 0.3  # decades; smoothing by learning rate, not by step, so that more steps do not move the answer
BOWL_SHARE = 0.15
MIN_STEPS = 10  # of a curve worth reading


@dataclass(frozen=True)
class LRCurve:
    """Learning rates in rising order and the loss of the step that was taken with each."""

    lrs: np.ndarray  # float64 [S]
    losses: np.ndarray  # float64 [S]

    def __post_init__(self) -> None:
        if not np.isfinite(self.losses).all():
            raise ValueError("a curve ends before its first loss that is not a number")


@dataclass(frozen=True)
class Suggestion:
    """What the rules make of a curve.

    Attributes:
        suggestions: Learning rate by rule; empty if the curve has no minimum.
        recommended: Name of the rule to follow, or None.
        reason: Why, in a sentence for the user.
    """

    suggestions: dict[str, float]
    recommended: str | None
    reason: str

    @property
    def max_lr(self) -> float | None:
        """The recommended learning rate."""
        return None if self.recommended is None else self.suggestions[self.recommended]


class _NotANumberError(Exception):
    pass


def range_test(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    criterion: Criterion,
    runtime: Runtime,
    *,
    start_lr: float,
    end_lr: float,
    steps: int,
    watch: Callable[[Iterable], Iterable] = iter,
) -> LRCurve:
    """Sweeps the learning rate geometrically with `torch_lr_finder` and puts model and optimizer back.

    Args:
        model: Left with the weights and buffers it came with.
        batches: At least ``steps`` of them.
        optimizer: A fresh one, without a scheduler; left with the state it came with.
        criterion: From logits and labels to the mean loss.
        runtime: Device and number format.
        start_lr: Learning rate of the first step.
        end_lr: Learning rate of the last step.
        steps: How many.
        watch: Wraps the batches, as ``tqdm`` wraps an iterable.

    Returns:
        The curve up to the last step, or to the one before the loss stopped being a number, or to the one at which it
        passed five times its minimum.
    """

    def finite_loss(logits: Tensor, labels: Tensor) -> Tensor:
        loss = criterion(logits.float(), labels)
        if not torch.isfinite(loss):  # the library would go on to the last step
            raise _NotANumberError
        return loss

    finder = LRFinder(
        model,
        optimizer,
        finite_loss,
        device=runtime.device,
        amp_backend="torch",
        amp_config=runtime.autocast_options,
        grad_scaler=runtime.scaler,
    )
    loader = TrainDataLoaderIter(watch(batches), auto_reset=False)
    try:
        with (
            open(os.devnull, "w") as nowhere,  # noqa: PTH123 - the library prints, and draws a bar of its own
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
            contextlib.suppress(_NotANumberError),
        ):
            finder.range_test(loader, start_lr=start_lr, end_lr=end_lr, num_iter=steps, smooth_f=0, diverge_th=5)
    finally:
        finder.reset()
    return LRCurve(np.array(finder.history["lr"]), np.array(finder.history["loss"]))


def average(curves: Sequence[LRCurve]) -> LRCurve:
    """The mean loss of several tests at each learning rate that all of them came to."""
    shortest = min(curves, key=lambda curve: len(curve.lrs))
    return LRCurve(shortest.lrs, np.mean([curve.losses[: len(shortest.lrs)] for curve in curves], axis=0))


def smooth(curve: LRCurve, bandwidth: float = BANDWIDTH) -> np.ndarray:
    """The losses as a local average over learning rates: a Gaussian of ``bandwidth`` decades (float64 ``[S]``)."""
    x = np.log10(curve.lrs)
    weights = np.exp(-0.5 * ((x[:, None] - x[None, :]) / bandwidth) ** 2)  # [S, S]
    return weights @ curve.losses / weights.sum(axis=1)


def steepest(lrs: np.ndarray, losses: np.ndarray) -> float:
    """Where the loss falls fastest by decade, looked for before the minimum only."""
    end = int(losses.argmin()) + 1
    slopes = np.gradient(losses, np.log10(lrs))
    return float(lrs[slopes[:end].argmin()])


def minimum_tenth(lrs: np.ndarray, losses: np.ndarray) -> float:
    """A tenth of the learning rate with the least loss."""
    return float(lrs[losses.argmin()] / 10)


def valley(lrs: np.ndarray, losses: np.ndarray) -> float:
    """The middle of the longest falling run of losses, rises in between left out (the rule of fastai's ``lr_find``)."""
    length = np.ones(len(losses), int)  # of the longest falling subsequence that ends here
    before = np.full(len(losses), -1)
    for i in range(len(losses)):
        for j in np.flatnonzero(losses[:i] > losses[i]):
            if length[j] + 1 > length[i]:
                length[i], before[i] = length[j] + 1, j
    run = [int(length.argmax())]
    while before[run[-1]] >= 0:
        run.append(int(before[run[-1]]))
    return float(lrs[run[::-1][len(run) // 2]])


def bowl(lrs: np.ndarray, losses: np.ndarray, share: float = BOWL_SHARE) -> float:
    """The geometric middle of the learning rates whose loss is close to the minimum.

    Close means within ``share`` of the way from the minimum up to the loss at the start. Where the bottom is flat, the
    place of the minimum is chance; the middle of the flat part is not. The rims lie between two steps, where the loss
    crosses the line, so that the answer does not jump from step to step.
    """
    x, least = np.log10(lrs), int(losses.argmin())
    line = losses[least] + share * (losses[0] - losses[least])
    outside = np.flatnonzero(losses > line)
    before, after = outside[outside < least], outside[outside > least]
    left = _crossing(x, losses, line, before[-1], before[-1] + 1) if len(before) else x[0]
    right = _crossing(x, losses, line, after[0] - 1, after[0]) if len(after) else x[-1]
    return float(10 ** ((left + right) / 2))


def _crossing(x: np.ndarray, y: np.ndarray, line: float, i: int, j: int) -> float:
    """Where a straight line through the points i and j reaches a height between them."""
    return float(x[i] + (line - y[i]) / (y[j] - y[i]) * (x[j] - x[i]))


def suggest(curve: LRCurve) -> Suggestion:
    """Applies every rule to the smoothed curve and recommends `bowl`, if the curve has a minimum at all."""
    if len(curve.lrs) < MIN_STEPS:
        return Suggestion({}, None, f"the loss ran away after {len(curve.lrs)} steps: lower --finder-start-lr")
    losses = smooth(curve)
    least = losses.argmin()
    if losses[0] - losses[least] < 0.05 * losses[0]:
        return Suggestion({}, None, "the loss never falls by 5 %: there is no minimum to read a learning rate from")
    if least == len(losses) - 1:
        return Suggestion({}, None, "the loss still falls at the last learning rate: raise --finder-end-lr")
    rules = {"steepest": steepest, "minimum / 10": minimum_tenth, "valley": valley, "bowl": bowl}
    return Suggestion(
        {name: float(f"{rule(curve.lrs, losses):.3g}") for name, rule in rules.items()},
        "bowl",
        "bowl is the middle of the learning rates with nearly the least loss: Adam's curve is wide and flat there, "
        "and the other rules, made for SGD, read it too low",
    )
