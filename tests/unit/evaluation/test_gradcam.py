import pytest
import torch

from s10_resnet.evaluation.gradcam import grad_cam
from s10_resnet.models.pretrained import load_model


@pytest.fixture
def network(weights):
    return load_model(weights, device="cpu").network


@pytest.fixture
def images(noise_images):
    return torch.from_numpy(noise_images[:6])


def test_against_the_gradient_worked_out_by_hand(network, images):
    """Behind the last convolutions are a maximum and a linear layer: only the largest activation has a gradient."""
    resnet = network.resnet
    labels = torch.tensor([0, 3, 9, 1, 1, 7])
    with torch.no_grad():
        x = resnet.layer3(resnet.layer2(resnet.layer1(resnet.prep(network.normalize(images)))))  # [6, 512, 4, 4]
        weight = resnet.linear.weight[labels] * resnet.logit_scale / 16  # [6, 512]
        expected = (weight[:, :, None, None] * x).sum(1).relu()
    expected = expected / expected.amax((1, 2), keepdim=True).clamp_min(1e-30)
    maps = grad_cam(network, images, labels)
    assert maps.shape == (6, 4, 4)
    assert torch.allclose(maps, expected, atol=1e-5)
    assert maps.amax((1, 2)).max() == 1


def test_it_leaves_the_network_as_it_was(network, images):
    with torch.inference_mode():
        before = network(images)
    with torch.no_grad():
        maps = grad_cam(network, images, torch.zeros(6, dtype=torch.long))
    assert not maps.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network.resnet.layer3._forward_hooks
    with torch.inference_mode():
        assert torch.equal(network(images), before)


def test_nothing_that_speaks_for_a_class_is_a_map_of_zeros(network, images):
    with torch.no_grad():
        network.resnet.linear.weight.fill_(-1)
    assert grad_cam(network, images, torch.zeros(6, dtype=torch.long)).count_nonzero() == 0
