"""Test-time augmentation: the mean of the logits over several views of an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s10_resnet.evaluation.inference import predict_logits
from s10_resnet.utils.runtime import Runtime

# Weight of a view's logits, its shift down and to the right in pixels, and whether it is mirrored, in the order of the
# forward passes.
TTA_VIEWS: dict[str, list[tuple[float, int, bool]]] = {
    "none": [(1.0, 0, False)],
    "flip": [(0.5, 0, False), (0.5, 0, True)],
    "flip_shift": [
        *((0.25, 0, flip) for flip in (False, True)),
        *((0.125, shift, flip) for shift in (-1, 1) for flip in (False, True)),
    ],
}


class TTAModel(nn.Module):
    """A network with test-time augmentation.

    ``flip`` is the mean over an image and its mirror image. ``flip_shift`` is half of that, and half the same of the
    image shifted by one pixel along the diagonal, up to the left and down to the right, as in Keller Jordan's airbench
    (https://github.com/KellerJordan/cifar10-airbench).

    Args:
        model: From uint8 ``[B, 32, 32, 3]`` to logits ``[B, C]``.
        tta: A key of `TTA_VIEWS`: ``none``, ``flip`` or ``flip_shift``.
    """

    def __init__(self, model: nn.Module, tta: str) -> None:
        super().__init__()
        self.model, self.views = model, TTA_VIEWS[tta]

    def forward(self, images: Tensor) -> Tensor:  # uint8 [B, 32, 32, 3]
        logits = (weight * self.model(_view(images, shift, flip)).float() for weight, shift, flip in self.views)
        return sum(logits)  # [B, C]


def tta_accuracy(model: nn.Module, tta: str, images: Tensor, labels: Tensor, runtime: Runtime) -> float:
    """Returns the accuracy with a kind of test-time augmentation, a fraction of 1; see `predict_logits`."""
    predicted = predict_logits(TTAModel(model, tta), images, runtime).argmax(1)
    return (predicted == labels).double().mean().item()


def _view(images: Tensor, shift: int, flip: bool) -> Tensor:
    """Shifts square images along the diagonal, filled up by reflection, and mirrors them."""
    if shift:
        last = images.shape[1] - 1
        indices = last - (last - (torch.arange(last + 1, device=images.device) - shift).abs()).abs()
        images = images[:, indices][:, :, indices]
    return images.flip(2) if flip else images
