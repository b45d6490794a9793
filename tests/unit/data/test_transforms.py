import albumentations as A  # noqa: N812
import cv2
import numpy as np
import pytest

from s10_resnet.data.dataset import load_cifar10
from s10_resnet.data.transforms import MEAN, STD, reflect_pad, seed_transform, train_transform

OFF = {"crop": False, "flip": False, "cutout_size": 0}
MEAN_PIXEL = np.array([125, 123, 114], np.uint8)


def draws(transform, image, count=400):
    seed_transform(transform, 1, 2, 3)
    return np.stack([transform(image=image)["image"] for _ in range(count)])


@pytest.fixture
def coordinates():
    """An image, padded by 4, whose every pixel tells its own place."""
    y, x = np.mgrid[:40, :40].astype(np.uint8)
    return np.stack([y, x, np.full_like(x, 200)], axis=-1)


def test_mean_and_std_are_those_of_the_training_pixels(cifar_root):
    train, _ = load_cifar10(cifar_root)
    values = np.arange(256) / 255
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        shares = np.bincount(train.images[..., channel].ravel(), minlength=256) / train.images[..., channel].size
        assert shares @ values == pytest.approx(mean, abs=5e-5)
        assert np.sqrt(shares @ (values - mean) ** 2) == pytest.approx(std, abs=5e-5)


def test_pad_equals_albumentations(noise_images):
    reference = A.Compose([A.Pad(4, border_mode=cv2.BORDER_REFLECT_101)])
    expected = np.stack([reference(image=image)["image"] for image in noise_images])
    np.testing.assert_array_equal(reflect_pad(noise_images, 4), expected)


def test_crops_are_windows_that_reach_every_place(coordinates):
    crops = draws(train_transform(**{**OFF, "crop": True}), coordinates, 2000)
    assert crops.shape == (2000, 32, 32, 3)
    tops, lefts = crops[:, 0, 0, 0].astype(int), crops[:, 0, 0, 1].astype(int)
    for crop, top, left in zip(crops, tops, lefts, strict=True):
        np.testing.assert_array_equal(crop, coordinates[top : top + 32, left : left + 32])
    counts = np.zeros((9, 9), int)
    np.add.at(counts, (tops, lefts), 1)
    assert counts.min() > 0  # all 81 windows of 4 pixels of padding, each expected 25 times
    assert counts.max() < 60


def test_half_of_the_images_are_flipped(coordinates):
    image = coordinates[:32, :32]
    flips = draws(train_transform(**{**OFF, "flip": True}), image)
    flipped = (flips == image[:, ::-1]).all(axis=(1, 2, 3))
    assert (flipped | (flips == image).all(axis=(1, 2, 3))).all()
    assert 0.4 < flipped.mean() < 0.6


@pytest.mark.parametrize("side", [4, 8])
def test_cutout_is_one_whole_square_of_the_mean_pixel(side):
    image = np.zeros((32, 32, 3), np.uint8)
    cut = draws(train_transform(**{**OFF, "cutout_size": side}), image)
    places = set()
    for changed, result in zip((cut != 0).all(axis=-1), cut, strict=True):
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        assert (len(rows), len(columns)) == (side, side)
        assert np.ptp(rows) == np.ptp(columns) == side - 1
        assert changed.sum() == side**2
        assert (result[changed] == MEAN_PIXEL).all()
        places.add((rows[0], columns[0]))
    assert len(places) > 200


def test_draws_are_a_function_of_the_key(coordinates):
    transform, other = (train_transform(crop=True, flip=True, cutout_size=8) for _ in range(2))

    def batch(transform, *key):
        seed_transform(transform, *key)
        return np.stack([transform(image=coordinates)["image"] for _ in range(8)])

    first = batch(transform, 0, 1, 2)
    np.testing.assert_array_equal(batch(other, 0, 1, 2), first)
    for key in ((0, 1, 3), (0, 2, 2), (1, 1, 2), (0, 2, 1)):
        assert not np.array_equal(batch(transform, *key), first)
    np.testing.assert_array_equal(batch(transform, 0, 1, 2), first)


def test_no_keyword_of_the_declaration_is_dropped(recwarn):
    train_transform(crop=True, flip=True, cutout_size=8)
    assert not recwarn.list  # Albumentations only warns of a keyword that it no longer knows
