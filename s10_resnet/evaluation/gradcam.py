"""Grad-CAM: which parts of an image speak for a class."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def grad_cam(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Returns Grad-CAM heat maps (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391) of the last residual layer.

    Args:
        model: A network of `s10_resnet.models.resnet.build_model`, in evaluation mode.
        images: uint8 ``[B, 32, 32, 3]`` on the model's device.
        classes: int64 ``[B]``, the class to explain for each image.

    Returns:
        float ``[B, 4, 4]``, scaled to a maximum of 1 per image; all 0 where nothing speaks for the class. Rows and
        columns are those of the image.
    """
    outputs: list[Tensor] = []
    layer = model.get_submodule("resnet.layer3")
    hook = layer.register_forward_hook(lambda layer, inputs, output: outputs.append(output))
    try:
        with torch.enable_grad():
            logits = model(images)  # [B, C]
            (activations,) = outputs  # [B, 512, 4, 4]
            # Images are independent in evaluation mode: the gradient of the sum holds the gradients of all.
            (gradients,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), activations)
    finally:
        hook.remove()
    weights = gradients.mean((2, 3), keepdim=True)  # [B, 512, 1, 1]
    maps = (weights * activations).sum(1).relu().detach()  # [B, 4, 4]
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
