import subprocess
import sys

import numpy as np
import pytest

from s10_resnet.data import dataset as data
from s10_resnet.errors import InputError


def test_hold_out_takes_of_every_class_its_share(split):
    rest, held = data.hold_out(split, 20)
    assert np.bincount(held.labels).tolist() == [2] * 10
    assert np.bincount(rest.labels).tolist() == [3] * 10
    pictures = [image.tobytes() for part in (rest, held) for image in part.images]
    assert sorted(pictures) == sorted(image.tobytes() for image in split.images)


def test_hold_out_keeps_images_and_labels_together(split):
    label_of = {image.tobytes(): label for image, label in zip(split.images, split.labels, strict=True)}
    for part in data.hold_out(split, 15):
        assert [label_of[image.tobytes()] for image in part.images] == part.labels.tolist()


def test_hold_out_is_proportional_where_classes_are_not_equal():
    labels = np.repeat([0, 1], [80, 20])
    images = np.zeros((100, 32, 32, 3), np.uint8)
    assert np.bincount(data.hold_out(data.Split(images, labels, ("a", "b")), 10)[1].labels).tolist() == [8, 2]


def test_hold_out_is_the_same_every_time(split):
    np.testing.assert_array_equal(data.hold_out(split, 20)[1].images, data.hold_out(split, 20)[1].images)
    assert not np.array_equal(data.hold_out(split, 20)[1].images, data.hold_out(split, 20, seed=1)[1].images)


@pytest.mark.parametrize("size", [50, 51])
def test_hold_out_leaves_something_to_train_on(split, size):
    with pytest.raises(InputError, match=f"--val-size {size}: must be below the number of training images, 50"):
        data.hold_out(split, size)


def test_synthetic_draws_train_and_test_apart():
    train, test = data.load_synthetic(20, 20)
    assert train.images.shape == test.images.shape == (20, 32, 32, 3)
    assert {image.tobytes() for image in train.images}.isdisjoint(image.tobytes() for image in test.images)


def test_the_stand_in_does_not_wait_for_torchvision():
    code = "import sys; from s10_resnet.data import dataset as data; data.load('synthetic', None); "
    code += "print('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
