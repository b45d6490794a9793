import albumentations as A  # noqa: N812
import cv2
import numpy as np
import pytest

from s10_resnet.data.transforms import MEAN, STD, mirror, pad, seed_transform, train_transform

OFF = {"crop": False, "flip": False, "cutout": 0}
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
    from s10_resnet.data.dataset import load_cifar10

    train, _ = load_cifar10(cifar_root)
    pixels = train.images.reshape(-1, 3) / 255
    np.testing.assert_allclose(pixels.mean(axis=0), MEAN, atol=5e-5)
    np.testing.assert_allclose(pixels.std(axis=0), STD, atol=5e-5)


def test_pad_equals_albumentations(noise_images):
    reference = A.Compose([A.Pad(4, border_mode=cv2.BORDER_REFLECT_101)])
    expected = np.stack([reference(image=image)["image"] for image in noise_images])
    np.testing.assert_array_equal(pad(noise_images, 4), expected)


def test_padding_by_nothing_changes_nothing(noise_images):
    np.testing.assert_array_equal(pad(noise_images, 0), noise_images)


def test_everything_off_changes_nothing(noise_images):
    transform = train_transform(**OFF)
    for image in noise_images:
        np.testing.assert_array_equal(transform(image=image)["image"], image)


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


def test_half_of_the_images_are_mirrored(coordinates):
    image = coordinates[:32, :32]
    flips = draws(train_transform(**{**OFF, "flip": True}), image)
    mirrored = (flips == image[:, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (flips == image).all(axis=(1, 2, 3))).all()
    assert 0.4 < mirrored.mean() < 0.6


@pytest.mark.parametrize("side", [4, 8])
def test_cutout_is_one_whole_square_of_the_mean_pixel(side):
    image = np.zeros((32, 32, 3), np.uint8)
    cut = draws(train_transform(**{**OFF, "cutout": side}), image)
    places = set()
    for changed, result in zip((cut != 0).all(axis=-1), cut, strict=True):
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        assert (len(rows), len(columns)) == (side, side)
        assert np.ptp(rows) == np.ptp(columns) == side - 1
        assert changed.sum() == side**2
        assert (result[changed] == MEAN_PIXEL).all()
        places.add((rows[0], columns[0]))
    assert len(places) > 200


def test_a_share_of_the_images_is_cut():
    image = np.zeros((32, 32, 3), np.uint8)
    cut = draws(train_transform(**{**OFF, "cutout": 8}, cutout_probability=0.25), image)
    assert 0.15 < (cut != 0).any(axis=(1, 2, 3)).mean() < 0.35


def test_rotations_reach_the_angle_on_both_sides_and_mirror_the_border():
    edge = np.zeros((40, 40, 3), np.uint8)
    edge[20:] = 200
    turned = draws(train_transform(**OFF, rotation=10, size=40), edge)
    heights = (turned[..., 0] > 100).sum(axis=1).astype(float)  # [count, columns]
    slopes = np.polyfit(np.arange(20), heights[:, 10:30].T, 1)[0]
    angles = np.degrees(np.arctan(slopes))
    assert -10.5 < angles.min() < -8.5
    assert 8.5 < angles.max() < 10.5
    assert abs(angles.mean()) < 1.5
    even = draws(train_transform(**OFF, rotation=10), np.full((40, 40, 3), 77, np.uint8))
    assert (even == 77).all()  # nothing comes in from outside


def test_color_jitter_stays_within_its_range():
    grey = np.full((32, 32, 3), 100, np.uint8)
    seen = draws(train_transform(**OFF, color_jitter=0.2), grey)
    assert (seen == seen[:, :1, :1, :1]).all()  # grey stays grey, and even
    values = seen[:, 0, 0, 0].astype(int)  # of an even grey image only the brightness changes
    assert 79 <= values.min() < 83
    assert 117 < values.max() <= 121


def test_color_jitter_changes_contrast_and_saturation_too():
    halves = np.full((32, 32, 3), (150, 100, 100), np.uint8)
    halves[16:] = (75, 50, 50)
    seen = draws(train_transform(**OFF, color_jitter=0.2), halves).astype(float)
    bright, dark = (pixel @ (0.299, 0.587, 0.114) for pixel in (seen[:, 0, 0], seen[:, -1, 0]))
    assert (bright / dark).std() > 0.05  # brightness and saturation keep the ratio of grey values
    colour = seen[:, 0, 0, 0] - seen[:, 0, 0, 1]
    assert (colour / (bright - dark)).std() > 0.05  # brightness and contrast change both alike


def test_mirroring_exchanges_left_and_right(coordinates):
    images = np.stack([coordinates, coordinates + 1])
    np.testing.assert_array_equal(mirror(images), images[:, :, ::-1])
    assert mirror(images[:0]).shape == (0, *coordinates.shape)


def test_the_fill_is_the_mean_in_pixel_units():
    np.testing.assert_array_equal(MEAN_PIXEL, np.round(255 * np.array(MEAN)))


def test_draws_are_a_function_of_the_key(coordinates):
    transform, other = (train_transform(crop=True, flip=True, cutout=8) for _ in range(2))

    def batch(transform, *key):
        seed_transform(transform, *key)
        return np.stack([transform(image=coordinates)["image"] for _ in range(8)])

    first = batch(transform, 0, 1, 2)
    np.testing.assert_array_equal(batch(other, 0, 1, 2), first)
    for key in ((0, 1, 3), (0, 2, 2), (1, 1, 2), (0, 2, 1)):
        assert not np.array_equal(batch(transform, *key), first)
    np.testing.assert_array_equal(batch(transform, 0, 1, 2), first)


def test_no_keyword_of_the_declaration_is_dropped(recwarn):
    train_transform(crop=True, flip=True, cutout=8)
    assert not recwarn.list  # Albumentations only warns of a keyword that it no longer knows


def test_importing_asks_the_network_nothing():
    import os

    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"
