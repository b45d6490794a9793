import numpy as np
import pytest
import torch
from torch import nn

from s10_resnet.evaluation import tta as views
from s10_resnet.evaluation.tta import Averaged
from s10_resnet.options import VIEWS


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


@pytest.mark.parametrize(("down", "right"), [(1, 1), (-1, -1), (0, 0), (2, -3)])
def test_a_shift_is_a_window_of_the_mirrored_surroundings(images, down, right):
    padded = np.pad(images.numpy(), ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    window = padded[:, 4 - down : 36 - down, 4 - right : 36 - right]
    assert np.array_equal(views.shifted(images, down, right).numpy(), window)


def test_a_mirror_exchanges_left_and_right(images):
    assert np.array_equal(views.mirrored(images).numpy(), images.numpy()[:, :, ::-1])


def test_what_each_shows(images):
    up, down = (views.shifted(images, by, by) for by in (-1, 1))
    expected = {
        "none": [(1, images)],
        "flip": [(1 / 2, images), (1 / 2, images.flip(2))],
        "six": [
            (1 / 4, images),
            (1 / 4, images.flip(2)),
            *((1 / 8, view) for view in (up, up.flip(2), down, down.flip(2))),
        ],
    }
    assert set(expected) == set(VIEWS) == set(views.VIEWS)
    for name, parts in expected.items():
        spy = Spy()
        logits = Averaged(spy, name)(images)
        assert len(spy.seen) == len(parts)
        assert all(torch.equal(seen, part) for seen, (_, part) in zip(spy.seen, parts, strict=True))
        assert torch.allclose(logits, sum(weight * Spy()(part) for weight, part in parts), rtol=1e-6)


def test_without_augmentation_the_logits_are_the_network_s(images):
    assert torch.equal(Averaged(Spy(), "none")(images), Spy()(images))


def test_the_mirror_pair_sees_no_difference_between_an_image_and_its_mirror_image(images):
    for name in ("flip", "six"):
        one, other = (Averaged(Spy(), name)(part) for part in (images, images.flip(2)))
        assert torch.allclose(one, other) == (name == "flip")
