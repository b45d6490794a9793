"""Two processes that train together over gloo, compared with the same computed by hand in one."""

import copy
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from s10_resnet.data.loader import BatchSpec
from tests.conftest import REPOSITORY
from tests.integration import ddp_rank

LAUNCH = "-m torch.distributed.run --standalone --nproc-per-node 2"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results of the two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    ended = subprocess.run(
        [sys.executable, *shlex.split(LAUNCH), "-m", "tests.integration.ddp_rank", str(folder)],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    return [torch.load(folder / f"rank-{number}-of-2.pt", weights_only=True) for number in range(2)]


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """The setup of the same settings in one process."""
    return ddp_rank.begin(tmp_path, monkeypatch)


def test_they_share_the_batches_of_one_process(ranks, alone):
    batches = list(alone.build_loader(2).sampler)
    shares = list(zip(*(rank["batches"] for rank in ranks), strict=True))
    assert len(shares) == len(batches) == 6
    for batch, share in zip(batches, shares, strict=True):
        assert [key for key, _ in share] == [(*batch.key[:3], number) for number in range(2)]
        assert sorted(sample for _, samples in share for sample in samples) == sorted(batch.indices.tolist())
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


def test_one_process_that_takes_their_shares_in_turn_has_the_same_result(ranks, alone):
    """The gradient is the mean of the shares', each with its own batch statistics; rank 0's running ones are kept."""
    state, criterion = alone.build_state(ddp_rank.MAX_LR), alone.build_criterion()
    dataset = alone.build_loader(1).dataset
    losses = []
    for share in zip(*(rank["batches"] for rank in ranks), strict=True):
        gradients, buffers = [], copy.deepcopy(dict(state.model.named_buffers()))
        for number, (key, samples) in enumerate(share):
            images, labels = dataset[BatchSpec(tuple(key), np.array(samples))]
            replica = copy.deepcopy(state.model).train()
            loss = criterion(replica(images), labels)
            gradients.append(torch.autograd.grad(loss, list(replica.parameters())))
            losses.append(loss.item() * len(labels))
            if number == 0:
                buffers = dict(replica.named_buffers())
        for name, buffer in state.model.named_buffers():
            buffer.copy_(buffers[name])
        for parameter, pair in zip(state.model.parameters(), zip(*gradients, strict=True), strict=True):
            # In the parameter's memory layout, which fused Adam expects.
            parameter.grad = torch.empty_like(parameter).copy_((pair[0] + pair[1]) / 2)
        state.optimizer.step()
        state.scheduler.step()
    for name, tensor in state.model.state_dict().items():
        if name in ("resnet.conv.bias", "resnet.norm.running_mean"):
            continue  # BatchNorm subtracts the bias: its gradient is rounding errors, which Adam scales up
        assert torch.allclose(tensor, ranks[0]["weights"][name], atol=1e-5), name
    history = ranks[0]["history"]
    assert [record["train_loss"] for record in history] == pytest.approx(
        [sum(losses[:6]) / 50, sum(losses[6:]) / 50], rel=1e-5
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads the processes from Linux's /proc")
def test_a_training_of_two_processes_continues_after_one_was_killed(tmp_path):
    flags = f"--dataset synthetic --max-train-samples 64 --batch-size 32 --epochs 3 --name run --output-dir {tmp_path}"
    process = subprocess.Popen(
        [sys.executable, *shlex.split(f"{LAUNCH} --max-restarts 1 scripts/train.py {flags}")],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    for line in process.stdout:
        if line.split()[:1] == ["1/3"]:
            break
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    assert f"resuming {tmp_path / 'run'}" in out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["epochs"], summary["world_size"]) == ("completed", 3, 2)
    assert not list((tmp_path / "run").glob(".*.tmp"))
