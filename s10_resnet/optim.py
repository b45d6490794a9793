"""Adam and the one-cycle policy."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def adam(model: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.Adam:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101).

    Convolutions and the linear layer decay; BatchNorm's scales and all biases (tensors of one dimension) do not.
    Fused: the one kind that a device can keep from an update (``found_inf``) without anybody waiting for it.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.Adam(groups, lr=lr, betas=betas, decoupled_weight_decay=True, fused=True)


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a model's weights and BatchNorm statistics, to be updated after every step.

    The first update copies the model (`torch.optim.swa_utils`).
    """
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def one_cycle(
    optimizer: torch.optim.Optimizer,
    *,
    max_lr: float,
    total_steps: int,
    pct_start: float,
    anneal: str,
    div_factor: float,
    final_div_factor: float,
) -> OneCycleLR:
    """The one-cycle policy (Smith and Topin 2018, https://arxiv.org/abs/1708.07120), to be stepped after every batch.

    Adam's betas stay as they are.
    """
    if math.isclose(pct_start * total_steps, 1.0):
        # The peak is the first step; torch would divide by the length of the rise, which is 0.
        pct_start = (1 - 1e-9) / total_steps
    return OneCycleLR(
        optimizer,
        max_lr=max_lr,
        total_steps=total_steps,
        pct_start=pct_start,
        anneal_strategy=anneal,
        cycle_momentum=False,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
    )


def planned_lrs(**schedule: float | int | str) -> list[float]:
    """The learning rate of every step of a `one_cycle` schedule, found by walking it without a model."""
    optimizer = torch.optim.SGD([torch.zeros(1)])
    scheduler = one_cycle(optimizer, **schedule)
    lrs = scheduler.get_last_lr()
    for _ in range(schedule["total_steps"] - 1):
        optimizer.step()  # does nothing without gradients; torch warns when a schedule runs ahead of its optimizer
        scheduler.step()
        lrs += scheduler.get_last_lr()
    return lrs
