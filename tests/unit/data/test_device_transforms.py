import itertools

import albumentations as A  # noqa: N812
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from s10_resnet.data.device_transforms import DeviceTransform
from s10_resnet.data.transforms import train_transform

TRANSFORMS = [
    (train_transform(crop=crop, flip=flip, cutout_size=cutout_size), size)
    for crop, flip, cutout_size in itertools.product((True, False), (True, False), (8, 0))
    for size in ((40, 32) if crop else (32,))
]


def hole(height, width, fill=7, p=1.0):
    return A.CoarseDropout((1, 1), (height, height), (width, width), fill=fill, p=p)


def noise(*shape):
    return torch.from_numpy(np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8))


def drawn(compose, shape, count, seed=0):
    return DeviceTransform(compose, shape).sample_params(np.random.default_rng(seed), count).numpy()


def apply_albumentations(compose, image, params):
    """The image after the transforms of Albumentations, applied one by one with the given parameters."""
    top, left, flipped, hole_top, hole_left = map(int, params)
    for step in compose.transforms:
        if isinstance(step, A.RandomCrop):
            window = (left, top, left + step.width, top + step.height)
            image = step.apply(image, crop_coords=window, pad_params=None)
        elif isinstance(step, A.HorizontalFlip):
            image = step.apply(image) if flipped else image
        else:
            height, width = step.hole_height_range[0], step.hole_width_range[0]
            if hole_top >= 0:
                box = [hole_left, hole_top, hole_left + width, hole_top + height]
                image = step.apply(image, holes=np.array([box]), seed=0)
            else:
                assert (hole_top, hole_left) == (-height, -width)
    return image


def run_albumentations(compose, image, count, seed=0):
    """Results and random parameters of Albumentations, in the columns of `DeviceTransform.sample_params`."""
    compose.set_random_seed(seed)
    results, params = [], np.zeros((count, 5), np.int64)
    for row in params:
        results.append(compose(image=image)["image"])
        for step in compose.transforms:
            applied = step.get_applied_params()
            if isinstance(step, A.RandomCrop):
                left, top, *_ = applied["crop_coords"]
                row[:2] = top, left
            elif isinstance(step, A.HorizontalFlip):
                row[2] = bool(applied)
            elif applied:
                ((left, top, *_),) = applied["holes"]
                row[3:] = top, left
            else:
                row[3:] = -step.hole_height_range[0], -step.hole_width_range[0]
    return np.stack(results), params


def check(compose, shape, count=24):
    """Both ways: with the parameters that this module params, and with those that Albumentations params."""
    transform, images = DeviceTransform(compose, shape), noise(count, *shape)
    params = transform.sample_params(np.random.default_rng(1), count)
    pairs = zip(images.numpy(), params.numpy(), strict=True)
    expected = np.stack([apply_albumentations(compose, image, own) for image, own in pairs])
    batch = transform.apply(images, params, torch.arange(count))
    np.testing.assert_array_equal(batch, expected)
    assert batch.shape[1:] == transform.output_shape
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous()

    expected, params = run_albumentations(compose, images[0].numpy(), count)
    batch = transform.apply(images[:1], torch.from_numpy(params), torch.zeros(count, dtype=torch.int64))
    np.testing.assert_array_equal(batch, expected)


@pytest.mark.parametrize(("compose", "size"), TRANSFORMS)
def test_the_train_transform_to_the_pixel(compose, size):
    check(compose, (size, size, 3))


@pytest.mark.parametrize(
    ("steps", "shape"),
    [
        ([A.RandomCrop(7, 12)], (11, 17, 3)),
        ([A.RandomCrop(11, 1), A.HorizontalFlip()], (11, 17, 3)),
        ([A.RandomCrop(9, 14), hole(3, 4)], (11, 17, 3)),
        ([hole(6, 9, (1, 2, 3), p=0.5)], (11, 17, 3)),
        ([hole(11, 17)], (11, 17, 3)),
        ([A.HorizontalFlip(p=1.0), hole(2, 3, 127.9)], (4, 5, 1)),
        ([A.RandomCrop(3, 4), A.HorizontalFlip(), hole(2, 3, (1, 2, 254, 255))], (4, 5, 4)),
    ],
)
def test_any_shape_and_number_of_channels(steps, shape):
    check(A.Compose(steps), shape)


@st.composite
def composes(draw):
    """Any of the three steps, and a shape of images that they have room in."""
    shape = height, width, channels = draw(st.tuples(*(st.integers(1, 12),) * 2, st.integers(1, 4)))
    probability, value = st.sampled_from((0.0, 0.5, 1.0)), st.integers(0, 255)
    steps = []
    if draw(st.booleans()):
        height, width = draw(st.integers(1, height)), draw(st.integers(1, width))
        steps.append(A.RandomCrop(height, width))
    if draw(st.booleans()):
        steps.append(A.HorizontalFlip(p=draw(probability)))
    if draw(st.booleans()):
        sides = draw(st.integers(1, height)), draw(st.integers(1, width))
        steps.append(hole(*sides, draw(value | st.tuples(*(value,) * channels)), draw(probability)))
    return A.Compose(steps), shape


@given(composes())
@settings(max_examples=150, deadline=None)
def test_any_steps_at_all(drawn):
    check(*drawn, count=6)


def test_indices_choose_from_the_whole_data_set():
    transform = DeviceTransform(train_transform(crop=True, flip=True, cutout_size=8), (40, 36, 3))
    images, indices = noise(20, 40, 36, 3), torch.tensor([19, 0, 7, 7, 12])
    params = transform.sample_params(np.random.default_rng(0), 5)
    batch = transform.apply(images, params, indices)
    assert torch.equal(batch, transform.apply(images[indices], params, torch.arange(5)))
    assert not torch.equal(batch[2], batch[3])  # the same image, drawn for twice


@pytest.mark.parametrize(("compose", "size"), TRANSFORMS)
def test_nothing_that_is_given_is_changed(compose, size):
    transform, images = DeviceTransform(compose, (size, size, 3)), noise(6, size, size, 3)
    given = images, transform.sample_params(np.random.default_rng(0), 6), torch.arange(6)
    before = [tensor.clone() for tensor in given]
    transform.apply(*given).zero_()
    for tensor, copy in zip(given, before, strict=True):
        assert torch.equal(tensor, copy)


class Operations(TorchDispatchMode):
    """Notes the operations, and the devices of all tensors that they take or give."""

    def __init__(self):
        super().__init__()
        self.names, self.devices = set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.names.add(function.overloadpacket.__name__)
        self.devices |= {leaf.device.type for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor)}
        return result


def test_nothing_synchronizes_with_the_device_or_is_copied_to_it():
    # A tensor on "meta" has no values: an operation that had to look at them, say for its result's shape, would raise.
    transform = DeviceTransform(train_transform(crop=True, flip=True, cutout_size=8), (40, 36, 3))
    images, params, indices = noise(9, 40, 36, 3), transform.sample_params(np.random.default_rng(0), 5), torch.arange(5)
    given = [tensor.to("meta") for tensor in (images, params, indices)]
    with Operations() as operations:
        assert transform.apply(*given).shape == (5, 32, 32, 3)
    assert operations.devices == {"meta"}
    assert "index_select" in operations.names
    assert not operations.names & {"lift_fresh", "_to_copy", "copy_"}  # what torch.tensor(..., device=...) comes to


def test_parameters_follow_the_generator():
    transform = DeviceTransform(train_transform(crop=True, flip=True, cutout_size=8), (40, 40, 3))
    rngs = [np.random.default_rng(seed) for seed in (3, 3, 4)]
    first, again, other = (transform.sample_params(rng, 50) for rng in rngs)
    assert first.shape == (50, 5)
    assert (first.dtype, first.device.type) == (torch.int64, "cpu")
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, transform.sample_params(rngs[0], 50))


def uniform(cells):
    """Whether counts could be of equally likely cells: chi-square within four standard deviations of its mean."""
    expected = cells.sum() / cells.size
    excess = ((cells - expected) ** 2 / expected).sum() - (cells.size - 1)
    return abs(excess) < 4 * np.sqrt(2 * (cells.size - 1))


def counts(*columns):
    """How often every combination of values came, each from its column's least to its greatest."""
    columns = [column - column.min() for column in columns]
    cells = np.zeros([column.max() + 1 for column in columns], int)
    np.add.at(cells, tuple(columns), 1)
    return cells


# No two sizes alike, so that an exchange shows, and few enough places for every combination to come.
SMALL = A.Compose([A.RandomCrop(6, 5), A.HorizontalFlip(), hole(3, 3)])
SMALL_SHAPE = (7, 8, 3)  # 2 x 4 windows, 2 orientations, 4 x 3 places of the hole
COMBINATIONS = 2 * 4 * 2 * 4 * 3


def test_parameters_have_the_distribution_of_albumentations():
    ours = drawn(SMALL, SMALL_SHAPE, 40_000)
    theirs = run_albumentations(SMALL, noise(*SMALL_SHAPE).numpy(), 6000)[1]
    assert len(np.unique(theirs, axis=0)) == COMBINATIONS
    np.testing.assert_array_equal(np.unique(ours, axis=0), np.unique(theirs, axis=0))
    for params in (ours, theirs):
        assert uniform(counts(*params.T))  # all combinations, so that no column tells of another


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_every_step_has_its_own_odds(p):
    params = drawn(A.Compose([A.HorizontalFlip(p=1 - p), hole(3, 2, p=p)]), (7, 8, 3), 20_000)
    flipped, hit = params[:, 2], params[:, 3] >= 0
    for share, expected in ((flipped.mean(), 1 - p), (hit.mean(), p), ((flipped & hit).mean(), p * (1 - p))):
        assert abs(share - expected) <= 4 * np.sqrt(expected * (1 - expected) / len(params))
    if p:
        assert uniform(counts(params[hit, 3], params[hit, 4]))  # wherever there is a hole, its place is any


UNSUPPORTED = {
    "another transform": [A.VerticalFlip()],
    "a nested composition": [A.OneOf([A.HorizontalFlip()])],
    "a crop higher than the image": [A.RandomCrop(9, 8)],
    "a crop wider than the image": [A.RandomCrop(8, 11)],
    "another order": [A.HorizontalFlip(), A.RandomCrop(4, 4)],
    "a step twice": [A.HorizontalFlip(), A.HorizontalFlip()],
    "a crop of some images": [A.RandomCrop(8, 8, p=0.5)],
    "a crop that pads": [A.RandomCrop(8, 8, pad_if_needed=True)],
    "several holes": [A.CoarseDropout((1, 2), (1, 1), (1, 1))],
    "a hole of a random height": [A.CoarseDropout((1, 1), (1, 2), (1, 1))],
    "a hole in fractions of the image": [A.CoarseDropout((1, 1), (0.5, 0.5), (1, 1))],
    "a hole of no pixels": [A.CoarseDropout((1, 1), (0, 0), (1, 1))],
    "a hole higher than the image": [hole(9, 8)],
    "a hole wider than the crop": [A.RandomCrop(8, 9), hole(8, 10)],
    "a random fill": [hole(2, 2, "random")],
    "a fill for too few channels": [hole(2, 2, (1, 2))],
    "a fill above 255": [hole(2, 2, 256)],
    "a fill of masks": [A.CoarseDropout((1, 1), (2, 2), (2, 2), fill_mask=0)],
}


@pytest.mark.parametrize("steps", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_is_not_reproduced_is_refused(steps):
    with pytest.raises(ValueError, match=type(steps[-1]).__name__) as caught:
        DeviceTransform(A.Compose(steps), (8, 10, 3))
    assert "on the device" in str(caught.value)


@pytest.mark.parametrize(
    "compose",
    [
        A.Sequential([]),
        A.ReplayCompose([]),
        A.Compose([], p=0.5),
    ],
    ids=("Sequential", "ReplayCompose", "p"),
)
def test_another_kind_of_composition_is_refused(compose):
    with pytest.raises(ValueError, match="only a plain Compose"):
        DeviceTransform(compose, (8, 10, 3))


def test_a_subclass_may_do_anything_and_is_refused():
    class Upside(A.HorizontalFlip):
        def apply(self, img, **params):
            return img[::-1]

    with pytest.raises(ValueError, match="Upside cannot be applied on the device"):
        DeviceTransform(A.Compose([Upside()]), (8, 10, 3))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (noise(4, 10, 8, 3), r"images must be torch.uint8 \(8, 10, 3\), not torch.uint8 \(10, 8, 3\)"),
        (noise(4, 8, 10, 1), r"not torch.uint8 \(8, 10, 1\)"),
        (noise(4, 8, 10, 3).float(), r"not torch.float32 \(8, 10, 3\)"),
        (noise(5, 8, 10, 3), "params are of 4 images, the batch has 5"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, message):
    transform = DeviceTransform(A.Compose([A.RandomCrop(4, 4)]), (8, 10, 3))
    with pytest.raises(ValueError, match=message):
        transform.apply(images, transform.sample_params(np.random.default_rng(0), 4), torch.arange(len(images)))
