"""One epoch against plain PyTorch, and what a step does when something goes wrong in it."""

import copy
import math
import os
import signal
from itertools import pairwise

import pytest
import torch
from torch import nn

from s10_resnet.errors import TrainingError
from s10_resnet.training.loop import train_one_epoch
from s10_resnet.training.optim import create_optimizer, create_scheduler, planned_lrs
from s10_resnet.training.state import TrainingState
from s10_resnet.utils.runtime import Runtime
from s10_resnet.utils.signals import ShutdownRequested, graceful_shutdown
from tests.outcome import without_clock

SIZES = (16, 16, 16, 2)
SCHEDULE = {
    "max_lr": 0.01,
    "total_steps": 8,
    "pct_start": 0.2,
    "anneal_strategy": "linear",
    "div_factor": 25.0,
    "final_div_factor": 1e4,
}
CROSS_ENTROPY = nn.CrossEntropyLoss()


class Small(nn.Module):
    """A network with BatchNorm that trains in no time."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(48)
        self.linear = nn.Linear(48, 10)

    def forward(self, images):  # [B, 32, 32, 3]
        x = images.float()[:, ::8, ::8].flatten(1) / 255
        return self.linear(self.norm(x))


class Unhurried(TrainingState):
    """Reads the losses after the epoch only, as on a device that is not waited for."""

    checks = 0

    def check_loss(self):
        self.checks += 1
        if self.checks > len(SIZES):
            super().check_loss()


def batches_of(split):
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    return list(zip(images.split(list(SIZES)), labels.split(list(SIZES)), strict=True))


def with_bad(batches, step):
    """Makes the loss of one step NaN."""
    images, labels = batches[step - 1]
    return [*batches[: step - 1], (torch.full(images.shape, math.nan), labels), *batches[step:]]


def make_state(model, runtime, kind=TrainingState, scale=None):
    optimizer = create_optimizer(model, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    scheduler = create_scheduler(optimizer, **SCHEDULE)
    state = kind(model, optimizer, scheduler, runtime)
    if scale and state.scaler.is_enabled():
        state.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return state


FP16 = Runtime(torch.device("cpu"), "fp16")  # as on CUDA, with loss scaling; `init_runtime` offers it on no CPU


def snapshot(state):
    """Parameters and moments, for ``==`` to compare."""
    parameters = {name: value.detach() for name, value in state.model.named_parameters()}
    return without_clock([parameters, state.optimizer.state_dict()["state"]])


def test_training_equals_a_plain_pytorch_loop(split, cpu):
    model = Small()
    reference = copy.deepcopy(model)
    state = make_state(model, cpu)
    for _ in range(2):
        train_one_epoch(state, batches_of(split), CROSS_ENTROPY)

    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in reference.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in reference.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.99),
    )
    losses, hits = [], 0
    for lr, (images, labels) in zip(planned_lrs(**SCHEDULE), batches_of(split) * 2, strict=True):
        for group in adamw.param_groups:
            group["lr"] = lr
        adamw.zero_grad()
        logits = reference.train()(images)
        loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()
        adamw.step()
        losses.append(loss.item() * len(labels))
        hits += (logits.argmax(1) == labels).sum().item()
    for ours, theirs in zip(model.state_dict().values(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert (state.step, state.metrics.steps, state.metrics.images) == (8, 8, 100)
    assert state.metrics.loss == pytest.approx(sum(losses) / 100, rel=1e-5)
    assert state.metrics.accuracy == hits / 100
    assert state.metrics.lr == planned_lrs(**SCHEDULE)[-1]


def test_the_loss_is_computed_in_fp32_whatever_the_precision(split):
    seen = []

    def criterion(logits, labels):
        seen.append(logits.dtype)
        return CROSS_ENTROPY(logits, labels)

    bf16 = Runtime(torch.device("cpu"), "bf16")
    for runtime in (bf16, FP16):
        model = Small()
        state = make_state(model, runtime)
        for _ in range(2):
            train_one_epoch(state, batches_of(split), criterion)
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        assert math.isfinite(state.metrics.loss)
    assert set(seen) == {torch.float32}


def test_loss_scaling_changes_nothing_but_the_range_of_the_gradients(split):
    models = [Small()]
    models.append(copy.deepcopy(models[0]))
    for model, scale in zip(models, (1.0, 2.0**8), strict=True):
        train_one_epoch(make_state(model, FP16, scale=scale), batches_of(split), CROSS_ENTROPY)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


def test_on_step_is_called_after_every_step(split, cpu):
    state, seen = make_state(Small(), cpu), []
    train_one_epoch(
        state, batches_of(split), CROSS_ENTROPY, lambda state: seen.append((state.step, state.metrics.images))
    )
    assert seen == [(1, 16), (2, 32), (3, 48), (4, 50)]


@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("runtime", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", [TrainingState, Unhurried], ids=["waited for", "not waited for"])
def test_a_loss_that_is_not_finite_leaves_the_weights_untouched(split, cpu, step, runtime, kind):
    """A loss of a GPU is not read before the end of the epoch: ``found_inf`` has to prevent all updates till then."""
    state = make_state(Small(), cpu if runtime == "fp32" else FP16, kind=kind)
    snapshots = [snapshot(state)]
    with pytest.raises(TrainingError, match=f"^epoch 1, step {step}: the loss is not finite$"):
        train_one_epoch(
            state,
            with_bad(batches_of(split), step),
            CROSS_ENTROPY,
            lambda state: snapshots.append(snapshot(state)),
        )
    good = snapshots[:step]
    assert all(one != other for one, other in pairwise(good))
    parameters, moments = snapshot(state)
    assert parameters == good[-1][0]
    if good[-1][1]:
        assert moments == good[-1][1]
    else:  # a skipped first update may create moments, which are 0
        assert not any(value.any() for moment in state.optimizer.state.values() for value in moment.values())
    assert state.step == (step - 1 if kind is TrainingState else 4)


def test_a_gradient_that_is_not_finite_is_skipped_by_loss_scaling_as_in_pytorch(split):
    """An overflow of scaled gradients is no failed step: the scale is halved, and the training goes on."""
    state = make_state(Small(), FP16, scale=2.0**60)
    before = snapshot(state)
    train_one_epoch(state, batches_of(split)[:1], CROSS_ENTROPY)
    assert snapshot(state)[0] == before[0]
    assert state.scaler.get_scale() == 2.0**59


def test_every_training_begins_with_the_same_scale(split):
    """As the runs of a sweep do, which share a runtime."""
    first = make_state(Small(), FP16)
    initial = first.scaler.state_dict()
    train_one_epoch(first, batches_of(split), CROSS_ENTROPY)
    assert first.scaler.state_dict() != initial
    assert make_state(Small(), FP16).scaler.state_dict() == initial


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_state_restores_itself_bit_for_bit(split, cpu, precision):
    batches = batches_of(split)
    whole = make_state(Small(), cpu if precision == "fp32" else FP16, scale=2.0**60)  # the first steps overflow
    train_one_epoch(whole, batches[:3], CROSS_ENTROPY)
    saved = copy.deepcopy(whole.state_dict())
    train_one_epoch(whole, batches[3:], CROSS_ENTROPY)
    torch.manual_seed(1)
    resumed = make_state(Small(), cpu if precision == "fp32" else FP16)
    resumed.load_state_dict(saved)
    train_one_epoch(resumed, batches[3:], CROSS_ENTROPY)
    assert without_clock(resumed.state_dict()) == without_clock(whole.state_dict())
    assert resumed.metrics.seconds > saved["metrics"]["seconds"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_step_lets_it_end(split, cpu, signum):
    """The signal comes between the forward pass and the update; the state is that of a whole number of steps."""
    state, calls = make_state(Small(), cpu), []
    reference = make_state(copy.deepcopy(state.model), cpu)

    def criterion(logits, labels):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signum)
        return CROSS_ENTROPY(logits, labels)

    with graceful_shutdown(), pytest.raises(ShutdownRequested) as stopped:
        train_one_epoch(state, batches_of(split), criterion)
    assert stopped.value.signum == signum
    assert state.step == 3
    train_one_epoch(reference, batches_of(split)[:3], CROSS_ENTROPY)
    assert without_clock(state.state_dict()) == without_clock(reference.state_dict())


def test_a_failure_goes_before_a_signal_in_the_same_step(split, cpu):
    def criterion(logits, labels):
        os.kill(os.getpid(), signal.SIGTERM)
        return CROSS_ENTROPY(logits, labels) * math.nan

    with graceful_shutdown(), pytest.raises(TrainingError, match="step 1"):
        train_one_epoch(make_state(Small(), cpu), batches_of(split), criterion)


def test_a_bad_weight_is_found_without_a_loss(cpu):
    state = make_state(Small(), cpu)
    state.check_weights()
    with torch.no_grad():
        state.model.norm.running_var[3] = math.inf
    with pytest.raises(TrainingError, match=r"^epoch 1, step 0: the weights are not finite$"):
        state.check_weights()
