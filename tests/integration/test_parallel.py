"""Two processes that train together over gloo, against the same done by hand in one."""

import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from s10_resnet.data import dataset as data
from s10_resnet.data.loader import Plan
from s10_resnet.models import resnet as model
from s10_resnet.training import session
from tests import rank
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of the two processes left."""
    folder = tmp_path_factory.mktemp("ranks")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.rank", folder]
    ended = subprocess.run(
        [sys.executable, *map(str, launch)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    return [torch.load(folder / f"rank-{number}-of-2.pt", weights_only=True) for number in range(2)]


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """The same settings in one process."""
    monkeypatch.setattr(data, "load_synthetic", data.load_synthetic)  # both come back afterwards
    monkeypatch.setattr(model, "build_network", model.build_network)
    return rank.begin(tmp_path)


def test_they_share_the_plans_of_one_process(ranks, alone):
    plans = list(session.loader(alone, 2).sampler)
    shares = list(zip(*(one["plans"] for one in ranks), strict=True))
    assert len(shares) == len(plans) == 6
    for plan, share in zip(plans, shares, strict=True):
        assert [key for key, _ in share] == [(*plan.key[:3], number) for number in range(2)]
        assert sorted(sample for _, samples in share for sample in samples) == sorted(plan.samples.tolist())
        assert len({len(samples) for _, samples in share}) == 1


def test_weights_moments_and_history_are_the_same_everywhere(ranks):
    one, other = ranks
    weights = [name for name in one["weights"] if name.endswith(("weight", "bias"))]
    assert len(weights) == 5
    assert all(torch.equal(one["weights"][name], other["weights"][name]) for name in weights)
    for key, moments in one["moments"].items():
        assert all(torch.equal(value, other["moments"][key][name]) for name, value in moments.items())
    for mine, theirs in zip(one["history"], other["history"], strict=True):
        assert all(mine[name] == theirs[name] for name in ("train_loss", "train_accuracy", "lr"))


def test_they_come_to_what_one_process_comes_to_that_takes_their_shares_in_turn(ranks, alone):
    """The gradient is the mean of the shares', each with batch statistics of its own; rank 0's running ones stay."""
    state, criterion = session.training_state(alone, rank.MAX_LR), session.criterion(alone)
    dataset = session.loader(alone, 1).dataset
    losses = []
    for share in zip(*(one["plans"] for one in ranks), strict=True):
        gradients, buffers = [], copy.deepcopy(dict(state.model.named_buffers()))
        for number, (key, samples) in enumerate(share):
            images, labels = dataset[Plan(tuple(key), np.array(samples))]
            replica = copy.deepcopy(state.model).train()
            loss = criterion(replica(images), labels)
            gradients.append(torch.autograd.grad(loss, list(replica.parameters())))
            losses.append(loss.item() * len(labels))
            if number == 0:
                buffers = dict(replica.named_buffers())
        for name, buffer in state.model.named_buffers():
            buffer.copy_(buffers[name])
        for parameter, pair in zip(state.model.parameters(), zip(*gradients, strict=True), strict=True):
            # In the parameter's memory layout, which a fused Adam takes for granted.
            parameter.grad = torch.empty_like(parameter).copy_((pair[0] + pair[1]) / 2)
        state.optimizer.step()
        state.scheduler.step()
    for name, tensor in state.model.state_dict().items():
        if name in ("resnet.conv.bias", "resnet.norm.running_mean"):
            continue  # BatchNorm takes the bias away again: its gradient is rounding, which Adam makes whole steps of
        assert torch.allclose(tensor, ranks[0]["weights"][name], atol=1e-5), name
    history = ranks[0]["history"]
    assert [record["train_loss"] for record in history] == pytest.approx(
        [sum(losses[:6]) / 50, sum(losses[6:]) / 50], rel=1e-5
    )
