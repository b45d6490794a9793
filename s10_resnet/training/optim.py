"""Adam and the one-cycle policy."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def adam(
    model: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float, bias_lr_factor: float = 1.0
) -> torch.optim.Adam:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101).

    Convolutions and the linear layer decay; BatchNorm's scales and all biases (tensors of one dimension) do not.
    Fused: the one kind that a device can keep from an update (``found_inf``) without anybody waiting for it.

    Args:
        model: Its parameters that ask for a gradient are taken.
        lr: Learning rate.
        betas: Decay rates of the moments.
        weight_decay: Times the learning rate, the share of a weight that a step takes off.
        bias_lr_factor: Learning rate of BatchNorm's biases over ``lr``, whatever a scheduler makes of that
            (Keller Jordan's airbench, https://arxiv.org/abs/2404.00498, has 64 with SGD).
    """
    biases = {id(module.bias) for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
    weights, others, norm_biases = [], [], []
    for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
        group = norm_biases if id(parameter) in biases else weights if parameter.ndim > 1 else others
        group.append(parameter)
    groups = [
        {"params": weights, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
        {"params": norm_biases, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.Adam(groups, lr=lr, betas=betas, decoupled_weight_decay=True, fused=True)

    # Schedulers and range tests set one rate for all groups: the factor is put on when a step is taken.
    def quicken(optimizer: torch.optim.Optimizer, *_: object) -> None:
        optimizer.param_groups[2]["lr"] = bias_lr_factor * optimizer.param_groups[0]["lr"]

    optimizer.register_step_pre_hook(quicken)
    return optimizer


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
    peak_beta1: float = 0.0,
) -> OneCycleLR:
    """The one-cycle policy (Smith and Topin 2018, https://arxiv.org/abs/1708.07120), to be stepped after every batch.

    Adam's first decay rate falls to ``peak_beta1`` while the learning rate rises, and rises back while that falls; with
    0 it stays as it is.
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
        cycle_momentum=peak_beta1 > 0,
        base_momentum=peak_beta1,
        max_momentum=optimizer.param_groups[0].get("betas", (0.0,))[0],
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
