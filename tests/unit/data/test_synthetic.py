"""The synthetic data set: types, seed, balance, and no shortcut to a class but its shape."""

from __future__ import annotations

import numpy as np
import pytest

from s10_resnet.data.synthetic import CLASSES, generate


@pytest.fixture(scope="module")
def train() -> tuple[np.ndarray, np.ndarray]:
    return generate(4_000, seed=0)


@pytest.fixture(scope="module")
def test() -> tuple[np.ndarray, np.ndarray]:
    return generate(1_000, seed=1)


def ridge_accuracy(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], penalty: float) -> float:
    """Test accuracy of a linear model, fitted by ridge regression from features [N, F] to one-hot labels."""
    (features, labels), (test_features, test_labels) = train, test
    mean = features.mean(axis=0)
    features, targets = features - mean, np.eye(len(CLASSES))[labels] - 1 / len(CLASSES)
    weights = np.linalg.solve(features.T @ features + penalty * np.eye(len(mean)), features.T @ targets)
    return float(np.mean(((test_features - mean) @ weights).argmax(axis=1) == test_labels))


def test_images_and_labels_have_the_promised_types_and_ranges(train):
    images, labels = train
    assert images.dtype == np.uint8
    assert images.shape == (4_000, 32, 32, 3)
    assert (images.min(), images.max()) == (0, 255)
    assert labels.dtype == np.int64
    assert set(labels) == set(range(10))
    assert len(set(CLASSES)) == 10
    assert all(name.isalpha() and name.islower() for name in CLASSES)


def test_a_seed_fixes_every_bit():
    for first, second in zip(generate(53, seed=7), generate(53, seed=7), strict=True):
        np.testing.assert_array_equal(first, second)


def test_another_seed_shares_nothing(train):
    (images, labels), (other_images, other_labels) = train, generate(4_000, seed=8)
    assert not np.array_equal(labels, other_labels)
    assert len({image.tobytes() for image in np.concatenate([images, other_images])}) == 8_000


@pytest.mark.parametrize("size", [0, 3, 100, 1_007])
def test_classes_are_balanced_to_one_image(size):
    counts = np.bincount(generate(size, seed=2)[1], minlength=10)
    assert counts.sum() == size
    assert np.ptp(counts) <= 1


def test_labels_are_shuffled(train):
    _, labels = train
    assert abs(np.mean(labels[1:] == labels[:-1]) - 0.1) < 0.03  # sorted: 1; in turn: 0


def test_colours_of_a_class_differ(train):
    images, labels = train
    means = np.stack([images[labels == label].mean(axis=0) for label in range(10)])  # [10, 32, 32, 3]
    assert np.abs(means - 127.5).max() < 24  # chance: standard error 4, the largest of 30,720 about 15


def test_places_of_a_class_differ(train):
    """Where every image has its edges in the same place, the mean over the images stands out there."""
    images, labels = train
    steps = np.abs(np.diff(images.astype(np.int16), axis=2))
    edges = np.stack([steps[labels == label].mean(axis=(0, 3)) for label in range(10)])  # [10, 32, 31]
    assert (edges.max(axis=(1, 2)) / edges.mean(axis=(1, 2))).max() < 2.4  # 2.0 as drawn, 3.2 if all were centred


def test_rotations_of_a_class_differ(train):
    """Bars that all lay flat would have far more edges down than across."""
    images, labels = train
    bars = images[labels == CLASSES.index("bar")].astype(np.int16)
    down, across = (np.abs(np.diff(bars, axis=axis)).mean() for axis in (1, 2))
    assert 0.95 < down / across < 1.05


# A penalty for each way to fail: memorising (3,072 features, 4,000 images) and fitting too little.
@pytest.mark.parametrize("penalty", [1.0, 1_000.0])
def test_a_linear_model_on_raw_pixels_fails(train, test, penalty):
    raw = [(images.reshape(len(images), -1) / 255, labels) for images, labels in (train, test)]
    assert ridge_accuracy(*raw, penalty) < 0.60


def test_mean_colour_does_not_tell_the_class(train, test):
    colour = [(images.mean(axis=(1, 2)) / 255, labels) for images, labels in (train, test)]
    assert ridge_accuracy(*colour, penalty=1e-3) < 0.20
