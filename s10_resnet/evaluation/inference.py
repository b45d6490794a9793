"""Logits, loss and accuracy of a network on images that fit into memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from s10_resnet.utils.runtime import Runtime

BATCH_SIZE = 1000  # images per forward pass

Criterion = Callable[[Tensor, Tensor], Tensor]  # logits [N, C], labels [N] to the mean loss


@torch.inference_mode()
def predict_logits(model: nn.Module, images: Tensor, runtime: Runtime) -> Tensor:
    """Returns the logits of images, in batches of 1,000, and leaves the model in evaluation mode.

    Args:
        model: From uint8 ``[B, 32, 32, 3]`` to logits ``[B, C]``.
        images: uint8 ``[N, 32, 32, 3]`` on the model's device, N at least 1.
        runtime: Device and precision.

    Returns:
        float32 ``[N, C]`` on the same device.
    """
    model.eval()
    with runtime.autocast():
        return torch.cat([model(batch).float() for batch in images.split(BATCH_SIZE)])


def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, criterion: Criterion, runtime: Runtime
) -> tuple[float, float, Tensor]:
    """Evaluates a model on images (see `predict_logits`) and their labels, int64 ``[N]`` on the same device.

    Returns:
        Mean loss, accuracy as a fraction of 1, and the logits, float32 ``[N, C]`` on the CPU.
    """
    logits = predict_logits(model, images, runtime)
    loss = criterion(logits, labels).item()
    accuracy = (logits.argmax(1) == labels).sum().item() / len(labels)
    return loss, accuracy, logits.cpu()
