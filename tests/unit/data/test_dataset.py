import numpy as np
import pytest

from s10_resnet.data import dataset
from s10_resnet.data.dataset import Split, load_dataset, load_synthetic, train_val_split
from s10_resnet.errors import InputError


def test_a_subset_keeps_images_and_labels_together(split):
    indices = np.array([7, 3, 3])
    subset = split.subset(indices)
    np.testing.assert_array_equal(subset.images, split.images[indices])
    np.testing.assert_array_equal(subset.labels, split.labels[indices])
    assert subset.classes == split.classes
    assert len(split.subset(slice(10)).labels) == 10


def test_the_validation_split_is_stratified_and_disjoint(split):
    train, val = train_val_split(split, 20)
    assert np.bincount(val.labels).tolist() == [2] * 10
    assert np.bincount(train.labels).tolist() == [3] * 10
    images = [image.tobytes() for part in (train, val) for image in part.images]
    assert sorted(images) == sorted(image.tobytes() for image in split.images)


def test_the_validation_split_keeps_labels_and_order(split):
    index = {image.tobytes(): i for i, image in enumerate(split.images)}
    for part in train_val_split(split, 15):
        indices = [index[image.tobytes()] for image in part.images]
        assert indices == sorted(indices)
        assert split.labels[indices].tolist() == part.labels.tolist()


def test_unequal_classes_are_split_in_proportion():
    labels = np.repeat([0, 1], [80, 20])
    images = np.zeros((100, 32, 32, 3), np.uint8)
    assert np.bincount(train_val_split(Split(images, labels, ("a", "b")), 10)[1].labels).tolist() == [8, 2]


def test_the_validation_split_never_moves(split):
    labels = np.arange(100) % 10
    images = np.zeros((100, 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(100)
    numbered = Split(images, labels, split.classes)
    assert train_val_split(numbered, 10)[1].images[:, 0, 0, 0].tolist() == [5, 8, 9, 20, 36, 37, 81, 82, 93, 94]


@pytest.mark.parametrize("size", [50, 51])
def test_a_validation_split_of_everything_is_refused(split, size):
    with pytest.raises(InputError, match=f"--val-size {size}: must be below the number of training images, 50"):
        train_val_split(split, size)


def test_the_synthetic_data_set_takes_no_files(split, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "load_synthetic", lambda: (split, split))
    monkeypatch.setattr(dataset, "load_cifar10", None)
    train, test, name = load_dataset("synthetic", tmp_path / "missing")
    assert (train is split, test is split, name) == (True, True, "synthetic")
    assert not list(tmp_path.iterdir())


def test_synthetic_train_and_test_split_share_no_image():
    train, test = load_synthetic(20, 20)
    assert train.images.shape == test.images.shape == (20, 32, 32, 3)
    assert {image.tobytes() for image in train.images}.isdisjoint(image.tobytes() for image in test.images)
