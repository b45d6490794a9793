"""What a training step asks of a GPU, without one: the product's own step and augmentation, on tensors without data.

A fake tensor has a shape and a device. An operation that needs its data (``item``, ``nonzero``, ``if tensor``) raises,
and all others are recorded. Two runs cover a step together:

- ``cuda``: all tensors are on ``cuda:0``, so copies are seen. PyTorch's backward pass needs a real context and is
  replaced by gradients of the right shape, and autocast is off without a GPU.
- ``cpu``: with autocast and the real backward pass, but a copy between host and device would not be seen.
"""

import warnings
from collections import Counter
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from s10_resnet.data.loader import DeviceAugmentedBatches, StatelessBatchSampler
from s10_resnet.models.resnet import build_model
from s10_resnet.training.loop import train_one_epoch
from s10_resnet.training.optim import create_optimizer, create_scheduler
from s10_resnet.training.state import TrainingState
from s10_resnet.utils.runtime import Runtime

STEPS = 3
READS = ("aten._local_scalar_dense", "aten.item", "aten.nonzero", "aten.equal", "aten.is_nonzero")
# Not counted: views and bookkeeping. Any other operation starts at least one kernel on a GPU.
FREE = ("prim.", "profiler.", "aten.view", "aten.select", "aten.detach", "aten.split", "aten.unbind", "aten.t.")
FREE += ("aten.expand", "aten.unsqueeze", "aten.permute", "aten.slice", "aten.alias", "aten._unsafe_view", "aten.empty")


class Call(NamedTuple):
    name: str
    reads: set[str]  # types of devices
    writes: set[str]
    blocking: bool


class Recorder(TorchDispatchMode):
    """Records operations with the devices that they read from and write to."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        blocking = not (kwargs or {}).get("non_blocking", False)
        self.calls.append(Call(str(func), devices((args, kwargs)), devices(result), blocking))
        return result


class Unread(TrainingState):
    """Does not read the loss, which the end of an epoch does, and every step on a CPU."""

    def check_loss(self):
        pass


def devices(tree):
    return {leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}


def to_fake(model, device):
    """Replaces parameters and buffers by fake ones; `Module.to` cannot."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is not None:
                    fake = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device=device)
                    tensors[name] = nn.Parameter(fake) if isinstance(old, nn.Parameter) else fake
    return model


def record_steps(split, monkeypatch, device, precision, criterion=None, flip="random"):
    """Trains some steps on fake tensors, and returns the operations of each."""
    device = torch.device(device)
    model = build_model((0.5,) * 3, (0.2,) * 3)
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings(action="ignore"):
        runtime = Runtime(device, precision)
        data = DeviceAugmentedBatches(split, device, crop_padding=4, flip=flip, cutout_size=8)
        to_fake(model, device)
        optimizer = create_optimizer(model, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
        scheduler = create_scheduler(
            optimizer,
            max_lr=0.01,
            total_steps=STEPS,
            pct_start=0.5,
            anneal_strategy="linear",
            div_factor=25.0,
            final_div_factor=1e4,
        )
        state = Unread(model, optimizer, scheduler, runtime)
        state.scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16")
        if device.type == "cuda":

            def backward(loss):
                for parameter in model.parameters():
                    parameter.grad = torch.empty_like(parameter)

            monkeypatch.setattr(torch.Tensor, "backward", backward)
        ends = [0]
        with Recorder() as recorder:
            batches = (data[spec] for spec in StatelessBatchSampler(48, 16, 1, seed=0))
            train_one_epoch(
                state,
                batches,
                criterion or nn.CrossEntropyLoss(label_smoothing=0.1),
                lambda state: ends.append(len(recorder.calls)),
            )
    return [recorder.calls[start:end] for start, end in pairwise(ends)]


def operations(step):
    return Counter(call.name for call in step if not call.name.startswith(FREE))


def waits(step):
    """The operations that wait for a GPU: those that read what is there, and copies to it that are not asynchronous."""
    return [
        call.name
        for call in step
        if ("cuda" in call.reads and ("cpu" in call.writes or call.name.startswith(READS)))
        or ("cpu" in call.reads and "cuda" in call.writes and call.blocking)
    ]


@pytest.mark.parametrize("flip", ["random", "alternating"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_on_cuda_does_not_wait(split, monkeypatch, precision, flip):
    for step in record_steps(split, monkeypatch, "cuda", precision, flip=flip):
        assert not waits(step)
        copies = [call.name for call in step if "cpu" in call.reads and "cuda" in call.writes]
        assert len(copies) == (3 if flip == "alternating" else 2)  # random parameters, indices, flips


@pytest.mark.parametrize(("precision", "ceiling"), [("fp32", 160), ("bf16", 180), ("fp16", 195)])
def test_a_step_has_few_operations(split, monkeypatch, precision, ceiling):
    """Measured with torch 2.15: 149, 170 and 185, of which 16 are convolutions and 16 BatchNorm."""
    _, *steps = record_steps(split, monkeypatch, "cpu", precision)  # the first creates Adam's moments
    for step in steps:
        counts = operations(step)
        assert sum(counts.values()) <= ceiling, counts
        assert counts["aten.convolution.default"] + counts["aten.convolution_backward.default"] == 16
        assert counts["aten._fused_adamw_.default"] == 2  # with and without weight decay
        assert counts["aten._amp_update_scale_.default"] == (precision == "fp16")


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("read", [torch.Tensor.item, bool, torch.nonzero])
def test_reading_a_loss_in_a_step_is_noticed(split, monkeypatch, device, read):
    def criterion(logits, labels):
        loss = nn.functional.cross_entropy(logits, labels)
        read(loss > 1)
        return loss

    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        record_steps(split, monkeypatch, device, "fp32", criterion)


@pytest.mark.parametrize("copy", [lambda loss: torch.ones(()).to(loss.device), lambda loss: loss.cpu()])
def test_a_copy_in_a_step_is_noticed(split, monkeypatch, copy):
    def criterion(logits, labels):
        loss = nn.functional.cross_entropy(logits, labels)
        copy(loss)
        return loss

    for step in record_steps(split, monkeypatch, "cuda", "bf16", criterion):
        assert len(waits(step)) == 1
