"""Adam and the one-cycle policy."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

SHORT_SCHEDULE = 200  # steps; in a longer one, a step next to the peak is within 1 % of it


def create_optimizer(
    model: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Adam:
    """Returns Adam with decoupled weight decay (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101).

    Convolutions and the linear layer decay; BatchNorm's weights and all biases (tensors of one dimension) do not.
    Fused: only fused optimizers skip an update on the device (``found_inf``) without synchronizing.

    Args:
        model: Its parameters that require a gradient are optimized.
        lr: Learning rate.
        betas: Coefficients of the running averages.
        weight_decay: A step subtracts ``lr * weight_decay`` times a weight from it.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.Adam(groups, lr=lr, betas=betas, decoupled_weight_decay=True, fused=True)


def create_scheduler(
    optimizer: torch.optim.Optimizer, *, total_steps: int, pct_start: float, **options: Any
) -> OneCycleLR:
    """Returns the one-cycle policy (Smith and Topin 2018, https://arxiv.org/abs/1708.07120), stepped after every batch.

    The arguments are those of `torch.optim.lr_scheduler.OneCycleLR`; ``total_steps`` is at least 2, and the optimizer's
    betas stay as they are. In a short schedule the peak is moved to the nearest step: between two steps, it would not
    be reached.
    """
    if total_steps < SHORT_SCHEDULE:
        pct_start = max(1, round(pct_start * total_steps)) / total_steps
    if math.isclose(pct_start * total_steps, 1.0):
        # The peak is the first step; OneCycleLR would divide by the length of the increase, which is 0.
        pct_start = (1 - 1e-9) / total_steps
    if pct_start == 1:
        # The peak is the last step; OneCycleLR, stepped once more, would divide by the length of the decrease.
        total_steps, pct_start = total_steps + 1, total_steps / (total_steps + 1)
    return OneCycleLR(optimizer, total_steps=total_steps, pct_start=pct_start, cycle_momentum=False, **options)


def planned_lrs(**schedule: Any) -> list[float]:
    """Returns the learning rate of every step of `create_scheduler`'s schedule, without a model."""
    optimizer = torch.optim.SGD([torch.zeros(1)])
    scheduler = create_scheduler(optimizer, **schedule)
    lrs = [float(lr) for lr in scheduler.get_last_lr()]
    for _ in range(schedule["total_steps"] - 1):
        optimizer.step()  # does nothing without gradients, but torch warns if the scheduler is stepped first
        scheduler.step()
        lrs += [float(lr) for lr in scheduler.get_last_lr()]
    return lrs
