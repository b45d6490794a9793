"""Where in an image a network sees a class."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def heat_maps(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391) at the last convolutions of the network.

    Args:
        network: Of `s10_resnet.models.resnet.build_network`, in evaluation mode.
        images: uint8 ``[B, 32, 32, 3]`` on the network's device.
        classes: int64 ``[B]``, the class to look for in each.

    Returns:
        float ``[B, 4, 4]`` from 0 to 1 in each image, all 0 where nothing speaks for the class; the rows and columns of
        the map are those of the image.
    """
    seen: list[Tensor] = []
    hook = network.resnet.layer3.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    try:
        with torch.enable_grad():
            logits = network(images)  # [B, C]
            (activations,) = seen  # [B, 512, 4, 4]
            # Images do not mix in evaluation mode, so one sum has the gradients of them all.
            (gradients,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), activations)
    finally:
        hook.remove()
    weights = gradients.mean((2, 3), keepdim=True)  # [B, 512, 1, 1]
    maps = (weights * activations).sum(1).relu().detach()  # [B, 4, 4]
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
