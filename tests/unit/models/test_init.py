import pytest
import torch
from torch import nn

from s10_resnet.data.transforms import MEAN, STD
from s10_resnet.models import init
from s10_resnet.models.resnet import build_model, count_parameters


@pytest.fixture
def network():
    return build_model(MEAN, STD)


def convolutions(network):
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def test_after_dirac_every_convolution_but_the_first_passes_its_input_on(network):
    drawn = {name: conv.weight.clone() for name, conv in convolutions(network).items()}
    init.dirac_init_(network)
    for name, conv in convolutions(network).items():
        x = torch.randn(2, conv.in_channels, 8, 8)
        with torch.no_grad():
            passed = torch.allclose(conv(x)[:, : conv.in_channels], x, atol=1e-6)
        assert passed == (name != "resnet.prep.conv")
        first = 0 if name == "resnet.prep.conv" else conv.in_channels
        assert torch.equal(conv.weight[first:], drawn[name][first:])  # the others stay as they were drawn


def correlated_images(count=64):
    """Pixels that lean on their neighbours and on the other channels, as those of photographs do."""
    noise = torch.randn(count, 1, 36, 36) + 0.2 * torch.randn(count, 3, 36, 36)
    return nn.functional.avg_pool2d(noise, 5, stride=1)


def test_after_whitening_responses_are_uncorrelated_and_of_variance_1(network):
    images = 8 * correlated_images()
    drawn = network.resnet.prep.conv.weight.clone()
    init.whitening_init_(network, images)
    conv = network.resnet.prep.conv
    with torch.no_grad():
        responses = nn.functional.conv2d(images, conv.weight)  # without the zeros that padding brings
    covariance = responses[:, :27].transpose(0, 1).flatten(1).cov()
    variances = covariance.diagonal()
    assert (covariance - variances.diag()).abs().max() < 0.01
    assert variances[:10].allclose(torch.ones(10), atol=0.01)
    assert (variances <= 1.001).all()  # the least directions are held back
    torch.testing.assert_close(conv.weight[27:54], -conv.weight[:27])
    torch.testing.assert_close(conv.weight[54:], drawn[54:])
    before = nn.functional.conv2d(images, drawn)[:, :27].transpose(0, 1).flatten(1).cov()
    assert (before - before.diagonal().diag()).abs().max() > 0.1  # or the images would prove nothing


def test_a_direction_without_variance_is_not_blown_up(network):
    init.whitening_init_(network, torch.zeros(4, 3, 32, 32))
    assert network.resnet.prep.conv.weight.abs().max() <= 1 / init.WHITENING_EPS**0.5 + 1e-3


def test_memory_stays_channels_last(network):
    init.dirac_init_(network)
    init.whitening_init_(network, correlated_images())
    for conv in convolutions(network).values():
        assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_whitened_filters_are_frozen_and_count_as_parameters(network):
    init.whitening_init_(network, torch.randn(50, 3, 32, 32))
    assert [parameter.numel() for parameter in network.parameters() if not parameter.requires_grad] == [1_728]
    assert count_parameters(network) == 6_573_120
