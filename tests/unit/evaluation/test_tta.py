import numpy as np
import pytest
import torch
from torch import nn

from s10_resnet.config import EvaluateConfig
from s10_resnet.evaluation.tta import TTA_VIEWS, TTAModel, tta_accuracy


class Spy(nn.Module):
    """Keeps what it is shown, and gives each image its own logits."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return torch.stack([images.float().mean((1, 2, 3)), images[:, 3, 5, 0].float()], 1)


@pytest.fixture
def images(noise_images):
    return torch.from_numpy(noise_images)


def shifted(images, pixels):
    """A window of the reflected images."""
    padded = np.pad(images.numpy(), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    return torch.from_numpy(padded[:, 1 - pixels : 33 - pixels, 1 - pixels : 33 - pixels])


def test_the_views_of_each_kind_and_their_order(images):
    up, down = (shifted(images, pixels) for pixels in (-1, 1))
    expected = {
        "none": [(1, images)],
        "flip": [(1 / 2, images), (1 / 2, images.flip(2))],
        "flip_shift": [
            (1 / 4, images),
            (1 / 4, images.flip(2)),
            *((1 / 8, view) for view in (up, up.flip(2), down, down.flip(2))),
        ],
    }
    assert list(TTA_VIEWS) == list(expected)
    assert all(EvaluateConfig(checkpoint="a", tta=name) for name in TTA_VIEWS)
    for name, views in expected.items():
        spy = Spy()
        logits = TTAModel(spy, name)(images)
        assert len(spy.seen) == len(views)
        assert all(torch.equal(seen, view) for seen, (_, view) in zip(spy.seen, views, strict=True))
        assert torch.allclose(logits, sum(weight * Spy()(view) for weight, view in views), rtol=1e-6)
    assert torch.equal(TTAModel(Spy(), "none")(images), Spy()(images))


def test_accuracies_of_all_kinds(images, cpu):
    labels, accuracies = torch.arange(len(images)) % 2, set()
    for tta in TTA_VIEWS:
        predicted = TTAModel(Spy(), tta)(images).argmax(1)
        accuracies.add((predicted == labels).sum().item() / len(images))
        assert tta_accuracy(Spy(), tta, images, labels, cpu) in accuracies
    assert len(accuracies) > 1
