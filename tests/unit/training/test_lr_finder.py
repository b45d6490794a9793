import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from s10_resnet.training import lr_finder
from s10_resnet.training.lr_finder import LRCurve
from s10_resnet.training.optim import create_optimizer
from s10_resnet.utils.runtime import Runtime

LRS = np.logspace(-6, 0, 601)
X = np.log10(LRS)


def flat_curve(x):
    """Falls by 1 over the decade before 1e-3, is flat up to 1e-2, and rises by 1 over the two decades after."""
    return np.interp(x, [-6, -4, -3, -2, 0], [2.3, 2.3, 1.3, 1.3, 2.3])


def test_smoothing_keeps_a_line_and_averages_noise():
    line = LRCurve(LRS, 3 - 0.2 * X)
    inside = slice(120, -120)  # the ends have neighbours on one side only
    np.testing.assert_allclose(lr_finder.smooth(line)[inside], line.losses[inside], atol=1e-3)
    noise = 10 + np.random.default_rng(0).normal(size=len(LRS))
    assert lr_finder.smooth(LRCurve(LRS, noise)).std() < 0.25


def test_smoothing_is_a_gaussian_average_over_learning_rates():
    lrs, losses = np.logspace(-6, 0, 100), np.random.default_rng(0).normal(2, 0.1, 100)
    x = np.log10(lrs)
    weights = np.exp(-0.5 * ((x[:, None] - x[None, :]) / 0.3) ** 2)
    expected = weights @ losses / weights.sum(axis=1)
    np.testing.assert_allclose(lr_finder.smooth(LRCurve(lrs, losses), bandwidth=0.3), expected, rtol=1e-12)


@pytest.mark.parametrize("steps", [0, 1])
def test_a_curve_too_short_to_smooth_is_returned(steps):
    assert lr_finder.smooth(LRCurve(LRS[:steps], np.ones(steps))).tolist() == [1.0] * steps


@pytest.mark.parametrize("last", [7, 100, 1e6, 1e30])
def test_how_far_the_last_loss_diverged_changes_nothing(last):
    lrs = np.logspace(-6, 0, 100)[:95]
    losses = flat_curve(np.log10(lrs))
    found = lr_finder.suggest(LRCurve(lrs, losses))
    losses[-1] = last
    assert lr_finder.suggest(LRCurve(lrs, losses)).max_lr == pytest.approx(found.max_lr, rel=0.03)


def test_noise_gets_no_recommendation():
    lrs, rng = np.logspace(-6, 0, 100), np.random.default_rng(0)
    found = [lr_finder.suggest(LRCurve(lrs, 2.3 + rng.normal(0, 0.3, 100))) for _ in range(200)]
    assert sum(suggestion.max_lr is not None for suggestion in found) <= 2
    assert any("noise" in suggestion.reason for suggestion in found)


def test_a_noisy_fall_gets_one():
    lrs, rng = np.logspace(-6, 0, 100), np.random.default_rng(0)
    losses = flat_curve(np.log10(lrs))
    picks = [lr_finder.suggest(LRCurve(lrs, losses + rng.normal(0, 0.15, 100))).max_lr for _ in range(100)]
    assert all(pick is not None and 1e-3 < pick < 2e-2 for pick in picks)


def test_the_standard_error_of_a_fall_is_that_of_many_curves():
    lrs, rng = np.logspace(-6, 0, 400), np.random.default_rng(0)
    curves = [LRCurve(lrs, rng.normal(2.3, 0.2, 400)) for _ in range(300)]
    falls = [smoothed[0] - smoothed[200] for smoothed in map(lr_finder.smooth, curves)]
    estimates = [lr_finder.noise_of_fall(curve) for curve in curves]
    assert np.mean(estimates) == pytest.approx(np.std(falls), rel=0.15)


def test_a_fall_that_ends_in_nan_does_not_ask_for_higher_rates():
    lrs = np.logspace(-6, 0, 100)[:70]
    found = lr_finder.suggest(LRCurve(lrs, 2.3 - 0.2 * (np.log10(lrs) + 6), non_finite=True))
    assert found.max_lr is None
    assert "NaN or infinite" in found.reason
    assert "--lr-finder-end-lr" not in found.reason


def test_a_curve_of_many_steps_is_read_like_one_of_few():
    picks = []
    for steps in (1_000, 20_000):  # a matrix of all pairs would take 3.2 GB
        lrs = np.logspace(-6, 0, steps)
        picks.append(lr_finder.suggest(LRCurve(lrs, flat_curve(np.log10(lrs)))).suggestions)
    assert picks[1] == pytest.approx(picks[0], rel=0.03)


def test_steepest_finds_the_middle_of_a_smooth_step():
    losses = 1 / (1 + np.exp(8 * (X + 3)))  # falls fastest at 1e-3
    assert lr_finder.steepest(LRS, losses) == pytest.approx(1e-3, rel=0.02)


def test_steepest_looks_before_the_minimum_only():
    losses = flat_curve(X)
    losses[X > -0.5] = 2.3 - 5 * (X[X > -0.5] + 0.5)  # a fall after the minimum, not as low
    losses = np.maximum(losses, 1.4)
    assert 1e-4 <= lr_finder.steepest(LRS, losses) <= 1e-3


def test_min_over_10_of_a_parabola():
    assert lr_finder.min_over_10(LRS, (X + 2) ** 2) == pytest.approx(1e-3, rel=0.01)


def test_valley_is_the_middle_of_the_longest_fall():
    # Falls at indices 0 to 2, rises, falls at 3 to 9: the longest falling subsequence is 3, 4, ..., 9.
    losses = np.array([5.0, 4.9, 4.8, 9.0, 8.0, 7.0, 6.0, 3.0, 2.0, 1.0, 1.5, 1.6])
    lrs = np.logspace(-6, 0, len(losses))
    assert lr_finder.valley(lrs, losses) == lrs[6]


@pytest.mark.parametrize("seed", range(5))
def test_valley_equals_a_brute_force_search(seed):
    losses = np.random.default_rng(seed).permutation(9).astype(float)
    lrs = np.logspace(-4, 0, 9)
    runs = [[i for i in range(9) if mask >> i & 1] for mask in range(1, 512)]
    falling = [run for run in runs if all(losses[a] > losses[b] for a, b in pairwise(run))]
    longest = max(map(len, falling))
    assert lr_finder.valley(lrs, losses) in [lrs[run[longest // 2]] for run in falling if len(run) == longest]


# The rates of `flat_curve` within a tenth of its fall of 1 are those from 10^-3.1 to 10^-1.8.
THIRD = -3.1 + 1.3 / 3


@pytest.mark.parametrize(("position", "exponent"), [(0, -3.1), (0.5, -2.45), (1, -1.8)])
def test_flat_minimum_is_at_a_position_of_the_flat_part(position, exponent):
    found = lr_finder.flat_minimum(LRS, flat_curve(X), fraction=0.1, position=position)
    assert found == pytest.approx(10**exponent, rel=0.02)


def test_flat_minimum_is_a_third_of_the_way_into_the_flat_part():
    assert lr_finder.flat_minimum(LRS, flat_curve(X), fraction=0.1) == pytest.approx(10**THIRD, rel=0.02)


def test_flat_minimum_stays_on_its_side_of_a_rise():
    losses = flat_curve(X)
    losses[X > -0.3] = 1.35  # low stretches beyond the rise and before the fall
    losses[(X > -5.5) & (X < -5)] = 1.35
    assert lr_finder.flat_minimum(LRS, losses, fraction=0.1) == pytest.approx(10**THIRD, rel=0.02)


def test_flat_minimum_moves_as_far_as_the_curve_does():
    lrs = np.logspace(-6, 0, 100)
    x = np.log10(lrs)
    step = x[1] - x[0]
    curves = [np.minimum((x + 2.5 - part * step) ** 2, 4) for part in (0, 0.25, 0.5, 0.75, 1)]
    picks = [np.log10(lr_finder.flat_minimum(lrs, losses)) for losses in curves]
    np.testing.assert_allclose(np.diff(picks), step / 4, atol=0.02 * step)  # not a whole step or none


def test_flat_minimum_ends_where_the_curve_does():
    falling = np.maximum(flat_curve(X), 1.3)[X < -2.5]  # the flat part continues beyond the last learning rate
    found = lr_finder.flat_minimum(LRS[X < -2.5], falling, fraction=0.1, position=0.5)
    assert found == pytest.approx(10 ** (-(3.1 + 2.5) / 2), rel=0.02)


def test_flat_minimum_stays_where_the_minimum_jumps_about():
    lrs = np.logspace(-6, 0, 100)
    rng = np.random.default_rng(0)
    picks, minima = [], []
    for _ in range(20):
        curve = LRCurve(lrs, flat_curve(np.log10(lrs)) + rng.normal(0, 0.08, 100))
        picks.append(lr_finder.suggest(curve).suggestions["flat_minimum"])
        minima.append(lrs[curve.losses.argmin()])
    assert max(picks) / min(picks) < 1.5
    assert max(minima) / min(minima) > 2.5


@pytest.mark.parametrize("steps", [50, 100, 400])
def test_the_result_does_not_depend_on_the_number_of_steps(steps):
    lrs = np.logspace(-6, 0, steps)
    found = lr_finder.suggest(LRCurve(lrs, flat_curve(np.log10(lrs))))
    assert found.max_lr == pytest.approx(10 ** (-3.15 + 1.45 / 3), rel=0.15)  # within 15 %: from -3.15 to -1.7


def test_suggest_names_every_rule_and_recommends_one():
    found = lr_finder.suggest(LRCurve(LRS, flat_curve(X)))
    assert list(found.suggestions) == ["steepest", "min_over_10", "valley", "flat_minimum"]
    assert found.recommended == "flat_minimum"
    assert found.max_lr == found.suggestions["flat_minimum"]
    assert "flat_minimum" in found.reason


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        (np.full(601, 2.3), "never falls"),
        (2.3 + np.maximum(X + 3, 0), "never falls"),
        (2.3 - 0.2 * (X + 6), "still falls at the last learning rate"),
        (2.3 + np.random.default_rng(0).normal(0, 0.05, 601), "never falls"),
    ],
    ids=["flat", "rising", "falling", "noise"],
)
def test_a_curve_without_a_minimum_says_so(losses, reason):
    found = lr_finder.suggest(LRCurve(LRS, losses))
    assert found.suggestions == {}
    assert found.recommended is None
    assert found.max_lr is None
    assert reason in found.reason


@pytest.mark.parametrize("steps", [0, 1, 9])
def test_a_curve_of_too_few_steps_says_so(steps):
    found = lr_finder.suggest(LRCurve(LRS[:steps], np.ones(steps)))
    assert found.max_lr is None
    assert f"after {steps} steps" in found.reason


class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(48)
        self.linear = nn.Linear(48, 10)

    def forward(self, images):
        return self.linear(self.norm(images.float()[:, ::8, ::8].flatten(1) / 255))


def run_range_test(split, cpu, model, steps=30, end_lr=1.0, criterion=None, optimizer=None, **options):
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    return lr_finder.range_test(
        model,
        [(images, labels)] * steps,
        optimizer or create_optimizer(model, lr=1e-5, betas=(0.9, 0.99), weight_decay=0.1),
        criterion or nn.CrossEntropyLoss(),
        cpu,
        start_lr=1e-5,
        end_lr=end_lr,
        steps=steps,
        **options,
    )


def test_model_and_optimizer_are_restored(split, cpu):
    model = Pixels()
    optimizer = create_optimizer(model, lr=0.123, betas=(0.9, 0.99), weight_decay=0.1)
    weights, settings = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    run_range_test(split, cpu, model, optimizer=optimizer)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert optimizer.state_dict() == settings


def test_the_scale_of_fp16_is_that_of_a_new_training_after_the_test(split):
    """An overflow in the test, or its successful steps, must not change the scale that the training starts with."""
    scalers = []

    class Observed(Runtime):
        def new_scaler(self):
            scalers.append(super().new_scaler())
            return scalers[-1]

    run = Observed(torch.device("cpu"), "fp16")
    assert len(run_range_test(split, run, Pixels(), steps=20, end_lr=1e-3).lrs) == 20
    fresh = torch.amp.GradScaler("cpu").state_dict()
    assert [scaler.state_dict() != fresh for scaler in scalers] == [True]
    assert run.new_scaler().state_dict() == fresh


def test_the_curve_is_that_of_a_plain_loop(split, cpu):
    model = Pixels()
    reference = copy.deepcopy(model)
    curve = run_range_test(split, cpu, model, steps=20)
    adam = create_optimizer(reference, lr=1e-5, betas=(0.9, 0.99), weight_decay=0.1)
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    expected = []
    for lr in np.logspace(-5, 0, 20):
        for group in adam.param_groups:
            group["lr"] = lr
        adam.zero_grad()
        loss = nn.functional.cross_entropy(reference.train()(images), labels)
        loss.backward()
        adam.step()
        expected.append(loss.item())
    np.testing.assert_allclose(curve.lrs, np.logspace(-5, 0, 20), rtol=1e-6)
    np.testing.assert_allclose(curve.losses, expected, rtol=1e-4)


def test_the_test_is_deterministic(split, cpu):
    model = Pixels()
    first, again = run_range_test(split, cpu, model), run_range_test(split, cpu, model)
    np.testing.assert_array_equal(first.losses, again.losses)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_test(split, cpu, poison):
    model, calls = Pixels(), []
    before = copy.deepcopy(model.state_dict())

    def criterion(logits, labels):
        calls.append(1)
        return nn.functional.cross_entropy(logits, labels) * (poison if len(calls) == 13 else 1)

    curve = run_range_test(split, cpu, model, criterion=criterion)
    assert len(calls) == 13
    assert len(curve.lrs) == len(curve.losses) == 12
    assert np.isfinite(curve.losses).all()
    assert curve.non_finite
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_diverging_loss_ends_the_test(split, cpu):
    calls = []

    def criterion(logits, labels):
        calls.append(1)
        return nn.functional.cross_entropy(logits, labels) * (100 if len(calls) == 8 else 1)

    curve = run_range_test(split, cpu, Pixels(), criterion=criterion)
    assert (len(curve.lrs), curve.non_finite) == (8, False)


def test_the_library_is_kept_quiet_and_the_caller_is_heard(split, cpu, capfd):
    told = []

    def on_step(*step):
        told.append(step)
        print("a step")

    curve = run_range_test(split, cpu, Pixels(), on_step=on_step)
    assert capfd.readouterr() == ("a step\n" * 29, "")
    assert told == list(zip(range(1, 30), curve.lrs, curve.losses, strict=False))
