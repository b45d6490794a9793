import itertools

import albumentations as A  # noqa: N812
import numpy as np
import pytest
import torch
from scipy import stats

from s10_resnet.data.device_transforms import DeviceTransform
from s10_resnet.data.transforms import seed_transform, train_transform


def noise(count, size):
    return np.random.default_rng(5).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def run_albumentations(images, crop_padding, flip, cutout_size):
    """Results and random parameters of Albumentations, in the columns of `DeviceTransform.sample_params`."""
    transform = train_transform(crop=crop_padding > 0, flip=flip, cutout_size=cutout_size)
    seed_transform(transform, 1)
    results, params = [], np.zeros((len(images), 5), np.int64)
    for image, row in zip(images, params, strict=True):
        results.append(transform(image=image)["image"])
        for step in transform.transforms:
            applied = step.get_applied_params()
            if isinstance(step, A.RandomCrop):
                left, top, *_ = applied["crop_coords"]
                row[:2] = top, left
            elif isinstance(step, A.HorizontalFlip):
                row[2] = bool(applied)
            else:
                ((left, top, *_),) = applied["holes"]
                row[3:] = top, left
    return np.stack(results), params


@pytest.mark.parametrize("crop_padding", [0, 4])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("cutout_size", [0, 10, 32])
def test_equal_parameters_give_the_pixels_of_albumentations(crop_padding, flip, cutout_size):
    images, indices = noise(20, 32 + 2 * crop_padding), np.random.default_rng(0).integers(0, 20, 100)
    expected, params = run_albumentations(images[indices], crop_padding, flip, cutout_size)
    transform = DeviceTransform(crop_padding, flip, cutout_size)
    batch = transform.apply(*map(torch.from_numpy, (images, indices, params)))
    np.testing.assert_array_equal(batch, expected)
    assert (batch.dtype, batch.is_contiguous()) == (torch.uint8, True)
    np.testing.assert_array_equal(images, noise(20, 32 + 2 * crop_padding))  # the data set is as it was


def test_parameters_have_the_distribution_of_albumentations():
    options = {"crop_padding": 1, "flip": True, "cutout_size": 31}  # of few combinations, so that all of them come
    combinations = list(itertools.product(range(3), range(3), range(2), range(2), range(2)))
    ours = DeviceTransform(**options).sample_params(np.random.default_rng(0), 40_000)
    _, theirs = run_albumentations(np.repeat(noise(1, 34), 4000, axis=0), **options)
    for params in (ours.numpy(), theirs):
        drawn, counts = np.unique(params, axis=0, return_counts=True)
        np.testing.assert_array_equal(drawn, combinations)
        assert stats.chisquare(counts).pvalue > 0.001  # all are equally likely, so no column tells of another


def test_parameters_follow_the_generator():
    transform, rngs = DeviceTransform(4, True, 10), [np.random.default_rng(seed) for seed in (3, 3, 4)]
    first, again, other = (transform.sample_params(rng, 50) for rng in rngs)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, transform.sample_params(rngs[0], 50))
