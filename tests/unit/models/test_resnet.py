import torch
from torch.nn import functional as F  # noqa: N812

from s10_resnet.data.transforms import MEAN, STD
from s10_resnet.models.resnet import Normalize, ResNet9, build_model, count_parameters


def test_parameter_count_is_the_assignments():
    assert count_parameters(ResNet9()) == 6_573_120
    assert count_parameters(build_model(MEAN, STD)) == 6_573_120  # normalization has no parameters


def functional_forward(state, x):
    """The assignment's network, written down once more without modules, in evaluation mode."""

    def conv(x, name, pool=False):
        x = F.conv2d(x, state[f"{name}.conv.weight"], padding=1)
        if pool:
            x = F.max_pool2d(x, 2)
        scale = state[f"{name}.norm.weight"] / torch.sqrt(state[f"{name}.norm.running_var"] + 1e-5)
        shift = state[f"{name}.norm.bias"] - scale * state[f"{name}.norm.running_mean"]
        return torch.clamp_min(x * scale[:, None, None] + shift[:, None, None], 0)

    def residual(x, name):
        return x + conv(conv(x, f"{name}.block.0"), f"{name}.block.1")

    x = conv(x, "prep")
    x = residual(conv(x, "layer1.0", pool=True), "layer1.1")
    x = conv(x, "layer2", pool=True)
    x = residual(conv(x, "layer3.0", pool=True), "layer3.1")
    return x.amax(dim=(2, 3)) @ state["linear.weight"].T * 0.125


def test_logits_equal_an_independent_forward_pass():
    network = ResNet9()
    for module in network.modules():  # BatchNorm as it comes is close to the identity: make it matter
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        logits, expected = network.eval()(x), functional_forward(network.state_dict(), x)
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


def test_normalize_equals_its_formula_and_keeps_channels_last():
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    x = Normalize(MEAN, STD)(images)
    expected = (images.double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    torch.testing.assert_close(x.double(), expected.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-5)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_the_network_takes_pixels_and_scales_its_logits():
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    torch.manual_seed(1)
    single = build_model(MEAN, STD, logit_scale=1.0).eval()
    torch.manual_seed(1)
    double = build_model(MEAN, STD, logit_scale=2.0).eval()
    with torch.no_grad():
        torch.testing.assert_close(2 * single(images), double(images))
