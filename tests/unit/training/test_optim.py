import copy

import numpy as np
import pytest
import torch
from torch import nn

from s10_resnet.training import optim

SCHEDULE = {"max_lr": 0.1, "total_steps": 50, "pct_start": 0.2, "anneal": "linear", "div_factor": 25.0}


def small_network():
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2, bias=True))


def test_decay_is_decoupled_as_in_torchs_adamw():
    ours, theirs = small_network(), None
    theirs = copy.deepcopy(ours)
    adam = optim.adam(ours, lr=0.01, betas=(0.9, 0.99), weight_decay=0.3)
    decayed = [p for p in theirs.parameters() if p.ndim > 1]
    others = [p for p in theirs.parameters() if p.ndim <= 1]
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}], lr=0.01, betas=(0.9, 0.99)
    )
    x = torch.randn(8, 3, 4, 4)
    for _ in range(5):
        for model, optimizer in ((ours, adam), (theirs, adamw)):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, reference)


def test_only_weights_of_more_than_one_dimension_decay():
    network = small_network()
    groups = optim.adam(network, lr=0.01, betas=(0.9, 0.99), weight_decay=0.3).param_groups
    decay_of = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {name: decay_of[id(p)] for name, p in network.named_parameters()} == {
        "0.weight": 0.3,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "3.weight": 0.3,
        "3.bias": 0.0,
    }


@pytest.mark.parametrize("anneal", ["linear", "cos"])
def test_biases_of_batchnorm_learn_faster_under_any_schedule(anneal):
    network = small_network()
    reference = copy.deepcopy(network)
    schedule = {**SCHEDULE, "anneal": anneal, "final_div_factor": 1e4}
    optimizer = optim.adam(network, lr=1.0, betas=(0.9, 0.99), weight_decay=0.3, bias_lr_factor=4.0)
    scheduler = optim.one_cycle(optimizer, **schedule)
    factors = {"1.bias": 4}
    parameters = dict(reference.named_parameters())
    theirs = torch.optim.AdamW(
        [{"params": [p], "weight_decay": 0.3 if p.ndim > 1 else 0.0} for p in parameters.values()], betas=(0.9, 0.99)
    )
    x = torch.randn(8, 3, 4, 4)
    for lr in optim.planned_lrs(**schedule)[:15]:
        for name, group in zip(parameters, theirs.param_groups, strict=True):
            group["lr"] = factors.get(name, 1) * lr
        for model, one in ((network, optimizer), (reference, theirs)):
            one.zero_grad()
            model(x).square().sum().backward()
            one.step()
        scheduler.step()
    for mine, other in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_a_range_test_keeps_the_ratio_too():
    network = small_network()
    optimizer = optim.adam(network, lr=1e-6, betas=(0.9, 0.99), weight_decay=0.0, bias_lr_factor=3.0)
    for lr in (1e-5, 1e-4, 1.0):
        for group in optimizer.param_groups:  # as torch_lr_finder does
            group["lr"] = lr
        optimizer.step()
        assert [group["lr"] for group in optimizer.param_groups] == [lr, lr, 3 * lr]


def test_frozen_parameters_are_left_out():
    network = small_network()
    network[0].requires_grad_(False)
    groups = optim.adam(network, lr=0.01, betas=(0.9, 0.99), weight_decay=0.3).param_groups
    assert sum(len(group["params"]) for group in groups) == 4


def test_the_moving_average_equals_one_made_by_hand():
    network = small_network()
    average = optim.moving_average(network, decay=0.7)
    by_hand = None
    for _ in range(5):
        network(torch.randn(8, 3, 4, 4))  # moves BatchNorm's statistics
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(torch.randn_like(weight))
        average.update_parameters(network)
        now = {name: value.double() for name, value in network.state_dict().items()}
        by_hand = now if by_hand is None else {name: 0.7 * by_hand[name] + 0.3 * now[name] for name in now}
    assert by_hand.pop("1.num_batches_tracked") > 0
    for name, value in by_hand.items():
        torch.testing.assert_close(average.module.state_dict()[name].double(), value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("anneal", ["linear", "cos"])
def test_schedule_equals_torchs(anneal):
    optimizer = torch.optim.SGD([torch.zeros(1)])
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.1, total_steps=50, pct_start=0.2, anneal_strategy=anneal, div_factor=25, final_div_factor=1e4
    )
    expected = []
    for _ in range(50):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < 50:
            reference.step()
    lrs = optim.planned_lrs(**{**SCHEDULE, "anneal": anneal}, final_div_factor=1e4)
    assert lrs == pytest.approx(expected, rel=1e-12)


def test_schedule_at_chosen_steps():
    lrs = optim.planned_lrs(**SCHEDULE, final_div_factor=1e4)
    assert len(lrs) == 50
    assert lrs[0] == pytest.approx(0.1 / 25)
    assert lrs[9] == pytest.approx(0.1)  # the peak, after a fifth of the steps
    assert lrs[49] == pytest.approx(0.1 / 25 / 1e4)
    assert lrs[29] == pytest.approx((lrs[9] + lrs[49]) / 2)  # half-way down a line


@pytest.mark.parametrize("total_steps", [1, 2, 3, 4, 5, 6, 10])
@pytest.mark.parametrize("pct_start", [0.0, 0.2, 0.5, 1.0, 0.1, 1 / 3])
def test_short_schedules_work_where_torchs_own_divides_by_zero(total_steps, pct_start):
    lrs = optim.planned_lrs(**{**SCHEDULE, "total_steps": total_steps, "pct_start": pct_start}, final_div_factor=1e4)
    assert len(lrs) == total_steps
    assert all(0 < lr <= 0.1 * (1 + 1e-9) for lr in lrs)


def test_the_first_beta_mirrors_the_learning_rate():
    schedule = {**SCHEDULE, "final_div_factor": 1e4, "peak_beta1": 0.85}
    optimizer = optim.adam(small_network(), lr=0.1, betas=(0.95, 0.99), weight_decay=0.0)
    scheduler = optim.one_cycle(optimizer, **schedule)
    lrs, betas = [], []
    for _ in range(50):
        lrs.append(optimizer.param_groups[0]["lr"])
        betas.append({group["betas"] for group in optimizer.param_groups})
        optimizer.step()
        if len(lrs) < 50:
            scheduler.step()
    assert lrs == pytest.approx(optim.planned_lrs(**schedule))
    first, second = np.array([pair for (pair,) in betas]).T  # the same in all groups
    assert set(second) == {0.99}
    np.testing.assert_allclose(first[:10], np.linspace(0.95, 0.85, 10))
    np.testing.assert_allclose(first[9:], np.linspace(0.85, 0.95, 41))


def test_betas_are_not_cycled():
    network = small_network()
    optimizer = optim.adam(network, lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    scheduler = optim.one_cycle(optimizer, **SCHEDULE, final_div_factor=1e4)
    seen = set()
    for _ in range(20):
        optimizer.step()
        scheduler.step()
        seen |= {group["betas"] for group in optimizer.param_groups}
    assert seen == {(0.9, 0.99)}
