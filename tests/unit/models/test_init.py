import pytest
import torch
from torch import nn

from s10_resnet.data.transforms import MEAN, STD
from s10_resnet.models import init as initialisation
from s10_resnet.models import resnet as model


@pytest.fixture
def network():
    return model.build_network(MEAN, STD)


def convolutions(network):
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def test_after_dirac_every_convolution_but_the_first_passes_its_input_on(network):
    drawn = {name: conv.weight.clone() for name, conv in convolutions(network).items()}
    initialisation.dirac(network)
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
    initialisation.whiten(network, images)
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


def test_directions_come_in_the_order_of_their_variance(network):
    images = correlated_images()
    initialisation.whiten(network, images)
    unit = nn.functional.normalize(network.resnet.prep.conv.weight[:27].flatten(1))
    along = nn.functional.conv2d(images, unit.view(27, 3, 3, 3)).transpose(0, 1).flatten(1).var(dim=1)
    assert (along.diff() <= 1e-4).all()
    assert along[0] > 10 * along[-1]


def test_a_direction_without_variance_is_not_blown_up(network):
    initialisation.whiten(network, torch.zeros(4, 3, 32, 32))
    assert network.resnet.prep.conv.weight.abs().max() <= 1 / initialisation.WHITENED_VARIANCE**0.5 + 1e-3


def test_too_few_filters_are_refused():
    with pytest.raises(ValueError, match="10 filters are too few for 27 directions with two signs each"):
        initialisation.whiten(nn.Sequential(nn.Conv2d(3, 10, 3)), torch.zeros(4, 3, 8, 8))


def test_memory_stays_channels_last(network):
    initialisation.dirac(network)
    initialisation.whiten(network, correlated_images())
    for conv in convolutions(network).values():
        assert conv.weight.is_contiguous(memory_format=torch.channels_last)
