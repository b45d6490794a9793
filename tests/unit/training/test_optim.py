import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from s10_resnet.training.optim import create_optimizer, create_scheduler, planned_lrs

SCHEDULE = {
    "max_lr": 0.1,
    "total_steps": 50,
    "pct_start": 0.2,
    "anneal_strategy": "linear",
    "div_factor": 25.0,
    "final_div_factor": 1e4,
}


def small_network():
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2, bias=True))


def test_decay_is_that_of_adamw_for_tensors_of_more_than_one_dimension():
    ours = small_network()
    theirs = copy.deepcopy(ours)
    adam = create_optimizer(ours, lr=0.01, betas=(0.8, 0.95), weight_decay=0.3)
    decays = {"0.weight": 0.3, "1.weight": 0.0, "1.bias": 0.0, "3.weight": 0.3, "3.bias": 0.0}
    groups = [{"params": [p], "weight_decay": decays[name]} for name, p in theirs.named_parameters()]
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95))
    x = torch.randn(8, 3, 4, 4)
    for _ in range(5):
        for model, optimizer in ((ours, adam), (theirs, adamw)):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, reference)


def test_an_update_can_be_skipped_on_the_device():
    network = small_network()
    optimizer = create_optimizer(network, lr=0.01, betas=(0.9, 0.99), weight_decay=0.3)
    before = copy.deepcopy(network.state_dict())
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_frozen_parameters_are_left_out():
    network = small_network()
    network[0].requires_grad_(False)
    groups = create_optimizer(network, lr=0.01, betas=(0.9, 0.99), weight_decay=0.3).param_groups
    assert sum(len(group["params"]) for group in groups) == 4


def torch_lrs(**schedule):
    """The learning rates of PyTorch's own scheduler."""
    optimizer = torch.optim.SGD([torch.zeros(1)])
    scheduler = OneCycleLR(optimizer, cycle_momentum=False, **schedule)
    lrs = []
    for step in range(schedule["total_steps"]):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < schedule["total_steps"] - 1:
            scheduler.step()
    return lrs


@pytest.mark.parametrize("total_steps", [2, 3, 50, 301])
@pytest.mark.parametrize("pct_start", [0.0, 0.2, 0.999, 1.0])
def test_the_schedule_is_stepped_after_every_batch_the_last_included(total_steps, pct_start):
    optimizer = torch.optim.SGD([torch.zeros(1)])
    scheduler = create_scheduler(optimizer, **{**SCHEDULE, "total_steps": total_steps, "pct_start": pct_start})
    for _ in range(total_steps):
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("strategy", ["linear", "cos"])
@pytest.mark.parametrize(("total_steps", "pct_start"), [(10, 0.2), (50, 0.1), (50, 1.0), (301, 0.2), (400, 1 / 3)])
def test_the_schedule_is_pytorchs(strategy, total_steps, pct_start):
    schedule = {**SCHEDULE, "anneal_strategy": strategy, "total_steps": total_steps, "pct_start": pct_start}
    assert planned_lrs(**schedule) == torch_lrs(**schedule)


@pytest.mark.parametrize("strategy", ["linear", "cos"])
@pytest.mark.parametrize("total_steps", [2, 3, 4, 5, 6, 7, 10, 199])
@pytest.mark.parametrize("pct_start", [0.0, 0.1, 0.2, 1 / 3, 0.5, 0.77, 1.0])
def test_a_short_schedule_reaches_its_peak(strategy, total_steps, pct_start):
    lrs = planned_lrs(**{**SCHEDULE, "anneal_strategy": strategy, "total_steps": total_steps, "pct_start": pct_start})
    peak = lrs.index(max(lrs))
    assert len(lrs) == total_steps
    assert lrs[peak] == pytest.approx(0.1, rel=1e-6)
    assert abs(peak - max(0, pct_start * total_steps - 1)) <= 0.5
    assert lrs == sorted(lrs[: peak + 1]) + sorted(lrs[peak + 1 :], reverse=True)
    assert peak == total_steps - 1 or lrs[-1] == pytest.approx(0.1 / 25 / 1e4)


@pytest.mark.parametrize("total_steps", [200, 201, 333, 1000, 2352])
@pytest.mark.parametrize("pct_start", [0.0, 0.0015, 0.0075, 0.2, 0.5, 0.9984, 1.0])
def test_a_long_schedule_comes_within_a_percent_of_its_peak(total_steps, pct_start):
    lrs = planned_lrs(**{**SCHEDULE, "total_steps": total_steps, "pct_start": pct_start})
    assert max(lrs) == pytest.approx(0.1, rel=0.01)


def test_the_schedule_at_chosen_steps():
    lrs = planned_lrs(**SCHEDULE)
    assert lrs[0] == pytest.approx(0.1 / 25)
    assert lrs[9] == pytest.approx(0.1)  # the peak, after a fifth of the steps
    assert lrs[49] == pytest.approx(0.1 / 25 / 1e4)
    assert lrs[29] == pytest.approx((lrs[9] + lrs[49]) / 2)  # half-way down a line


def test_all_groups_follow_the_schedule_and_betas_are_not_cycled():
    optimizer = create_optimizer(small_network(), lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    scheduler = create_scheduler(optimizer, **SCHEDULE)
    for lr in planned_lrs(**SCHEDULE):
        assert [group["lr"] for group in optimizer.param_groups] == [lr, lr]
        assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.99)}
        optimizer.step()
        scheduler.step()
