import itertools

import albumentations as A  # noqa: N812
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from s10_resnet.data.device_transforms import BatchedTransform
from s10_resnet.data.transforms import train_transform

DECLARED = [
    (train_transform(crop=crop, flip=flip, cutout=cutout), size)
    for crop, flip, cutout in itertools.product((True, False), (True, False), (8, 0))
    for size in ((40, 32) if crop else (32,))
]


def hole(height, width, fill=7, p=1.0):
    return A.CoarseDropout((1, 1), (height, height), (width, width), fill=fill, p=p)


def noise(*shape):
    return torch.from_numpy(np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8))


def drawn(compose, shape, count, seed=0):
    return BatchedTransform(compose, shape).draw(np.random.default_rng(seed), count).numpy()


def albumentations_does(compose, image, draws):
    """What the steps themselves, one after the other, make of an image where this was drawn for them."""
    left_over = list(draws)

    def take():
        return int(left_over.pop(0))

    for step in compose.transforms:
        if isinstance(step, A.HorizontalFlip):
            image = step.apply(image) if take() else image
            continue
        top, left = take(), take()
        if isinstance(step, A.RandomCrop):
            window = (left, top, left + step.width, top + step.height)
            image = step.apply(image, crop_coords=window, pad_params=None)
        else:
            height, width = step.hole_height_range[0], step.hole_width_range[0]
            if top >= 0:
                image = step.apply(image, holes=np.array([[left, top, left + width, top + height]]), seed=0)
            else:
                assert (top, left) == (-height, -width)
    assert not left_over
    return image


def albumentations_draws(compose, image, count, seed=0):
    """Lets Albumentations draw: its results, and its draws in the columns that `BatchedTransform.draw` has."""
    compose.set_random_seed(seed)
    results, draws = [], []
    for _ in range(count):
        results.append(compose(image=image)["image"])
        row = []
        for step in compose.transforms:
            params = step.get_applied_params()
            if isinstance(step, A.HorizontalFlip):
                row.append(int(bool(params)))
                continue
            if isinstance(step, A.RandomCrop):
                left, top, *_ = params["crop_coords"]
            elif params:
                ((left, top, *_),) = params["holes"]
            else:
                left, top = -step.hole_width_range[0], -step.hole_height_range[0]
            row += [top, left]
        draws.append(row)
    return np.stack(results), np.array(draws, dtype=np.int64).reshape(count, -1)


def check(compose, shape, count=24):
    """Both ways: what this module draws, done by Albumentations; what Albumentations draws, done by this module."""
    transform, images = BatchedTransform(compose, shape), noise(count, *shape)
    draws = transform.draw(np.random.default_rng(1), count)
    pairs = zip(images.numpy(), draws.numpy(), strict=True)
    expected = np.stack([albumentations_does(compose, image, own) for image, own in pairs])
    batch = transform.apply(images, draws)
    np.testing.assert_array_equal(batch, expected)
    assert batch.shape[1:] == transform.result
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous()

    expected, draws = albumentations_draws(compose, images[0].numpy(), count)
    np.testing.assert_array_equal(transform.apply(images[:1].expand(count, *shape), torch.from_numpy(draws)), expected)


@pytest.mark.parametrize(("compose", "size"), DECLARED)
def test_the_declared_augmentation_to_the_pixel(compose, size):
    check(compose, (size, size, 3))


@pytest.mark.parametrize(
    ("steps", "shape"),
    [
        ([A.RandomCrop(7, 12)], (11, 17, 3)),
        ([A.RandomCrop(11, 1), A.HorizontalFlip()], (11, 17, 3)),
        ([A.HorizontalFlip(), A.RandomCrop(7, 12)], (11, 17, 3)),
        ([hole(2, 5, (1, 2, 3)), A.HorizontalFlip(), A.RandomCrop(7, 12)], (11, 17, 3)),
        ([A.RandomCrop(9, 14), hole(3, 4), A.RandomCrop(5, 6), A.HorizontalFlip(), A.HorizontalFlip()], (11, 17, 3)),
        ([hole(6, 9, 1), hole(9, 6, 2), hole(3, 3, 3, p=0.5)], (11, 17, 3)),  # they overlap: the last is on top
        ([hole(11, 17)], (11, 17, 3)),
        ([A.HorizontalFlip(p=1.0), hole(2, 3, 127.9)], (4, 5, 1)),
        ([A.RandomCrop(3, 4), A.HorizontalFlip(), hole(2, 3, (1, 2, 254, 255.0))], (4, 5, 4)),
    ],
)
def test_any_order_shape_and_number_of_channels(steps, shape):
    check(A.Compose(steps), shape)


@st.composite
def composes(draw):
    """Up to six steps in any order, and a shape of images that they have room in."""
    shape = height, width, channels = draw(st.tuples(*(st.integers(1, 12),) * 2, st.integers(1, 4)))
    probability, value = st.sampled_from((0.0, 0.5, 1.0)), st.integers(0, 255)
    steps = []
    for kind in draw(st.lists(st.sampled_from(("crop", "flip", "hole")), max_size=6)):
        if kind == "flip":
            steps.append(A.HorizontalFlip(p=draw(probability)))
            continue
        sides = draw(st.integers(1, height)), draw(st.integers(1, width))
        if kind == "crop":
            steps.append(A.RandomCrop(*sides))
            height, width = sides
        else:
            steps.append(hole(*sides, draw(value | st.tuples(*(value,) * channels)), draw(probability)))
    return A.Compose(steps), shape


@given(composes())
@settings(max_examples=150, deadline=None)
def test_any_steps_at_all(drawn):
    check(*drawn, count=6)


def test_samples_choose_from_the_whole_data_set():
    transform = BatchedTransform(train_transform(crop=True, flip=True, cutout=8), (40, 36, 3))
    images, samples = noise(20, 40, 36, 3), torch.tensor([19, 0, 7, 7, 12])
    draws = transform.draw(np.random.default_rng(0), 5)
    batch = transform.apply(images, draws, samples)
    assert torch.equal(batch, transform.apply(images[samples], draws))
    assert not torch.equal(batch[2], batch[3])  # the same image, drawn for twice


@pytest.mark.parametrize(("compose", "size"), DECLARED)
def test_nothing_that_is_given_is_changed(compose, size):
    transform, images = BatchedTransform(compose, (size, size, 3)), noise(6, size, size, 3)
    given = images, transform.draw(np.random.default_rng(0), 6), torch.arange(6)
    before = [tensor.clone() for tensor in given]
    transform.apply(*given).zero_()
    for tensor, copy in zip(given, before, strict=True):
        assert torch.equal(tensor, copy)


def test_images_need_not_be_contiguous():
    transform = BatchedTransform(train_transform(crop=True, flip=True, cutout=8), (40, 36, 3))
    images, draws = noise(6, 3, 36, 40).permute(0, 3, 2, 1), transform.draw(np.random.default_rng(0), 6)
    assert torch.equal(transform.apply(images, draws), transform.apply(images.contiguous(), draws))


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


def test_the_device_is_neither_waited_for_nor_copied_to():
    # A tensor on "meta" has no values: an operation that had to look at them, say for its result's shape, would raise.
    transform = BatchedTransform(train_transform(crop=True, flip=True, cutout=8), (40, 36, 3))
    images, draws, samples = noise(9, 40, 36, 3), transform.draw(np.random.default_rng(0), 5), torch.arange(5)
    given = [tensor.to("meta") for tensor in (images, draws, samples)]
    with Operations() as operations:
        assert transform.apply(*given).shape == (5, 32, 32, 3)
        assert transform.apply(given[0][:5], given[1]).shape == (5, 32, 32, 3)
    assert operations.devices == {"meta"}
    assert "index_select" in operations.names
    assert not operations.names & {"lift_fresh", "_to_copy", "copy_"}  # what torch.tensor(..., device=...) comes to


def test_draws_are_one_small_tensor_that_follows_the_generator():
    transform = BatchedTransform(train_transform(crop=True, flip=True, cutout=8), (40, 40, 3))
    rngs = [np.random.default_rng(seed) for seed in (3, 3, 4)]
    first, again, other = (transform.draw(rng, 50) for rng in rngs)
    assert first.shape == (50, 5)
    assert (first.dtype, first.device.type) == (torch.int64, "cpu")
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, transform.draw(rngs[0], 50))


def test_the_declarations_own_state_plays_no_part():
    compose, image = train_transform(crop=True, flip=True, cutout=8), noise(40, 40, 3).numpy()
    compose.set_random_seed(7)
    first = drawn(compose, image.shape, 20)
    result = compose(image=image)["image"]
    compose.set_random_seed(7)
    np.testing.assert_array_equal(compose(image=image)["image"], result)
    np.testing.assert_array_equal(drawn(compose, image.shape, 20), first)


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


def test_draws_have_the_very_values_and_odds_of_albumentations():
    ours = drawn(SMALL, SMALL_SHAPE, 40_000)
    theirs = albumentations_draws(SMALL, noise(*SMALL_SHAPE).numpy(), 6000)[1]
    assert len(np.unique(theirs, axis=0)) == COMBINATIONS
    np.testing.assert_array_equal(np.unique(ours, axis=0), np.unique(theirs, axis=0))
    for draws in (ours, theirs):
        assert uniform(counts(*draws.T))  # all combinations, so that no column tells of another


def test_an_image_tells_nothing_of_the_next():
    draws = drawn(SMALL, SMALL_SHAPE, 40_000)
    for column in draws.T:
        assert uniform(counts(column[:-1], column[1:]))


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_every_step_has_its_own_odds(p):
    draws = drawn(A.Compose([A.HorizontalFlip(p=p), hole(3, 2, p=p), A.HorizontalFlip(p=1 - p)]), (7, 8, 3), 20_000)
    first, hit, second = draws[:, 0], draws[:, 1] >= 0, draws[:, 3]
    for share, expected in ((first.mean(), p), (hit.mean(), p), (second.mean(), 1 - p), ((first & hit).mean(), p * p)):
        assert abs(share - expected) <= 4 * np.sqrt(expected * (1 - expected) / len(draws))
    if p:
        assert uniform(counts(draws[hit, 1], draws[hit, 2]))  # wherever there is a hole, its place is any


@pytest.mark.parametrize(
    ("compose", "message"),
    [
        ([A.VerticalFlip()], "VerticalFlip is not done here, only RandomCrop, HorizontalFlip, CoarseDropout"),
        ([A.OneOf([A.HorizontalFlip()])], "OneOf is not done here, only RandomCrop, HorizontalFlip, CoarseDropout"),
        ([A.Compose([])], "Compose is not done here, only RandomCrop, HorizontalFlip, CoarseDropout"),
        ([A.RandomCrop(9, 8)], r"RandomCrop\(height=9\) is not done here, only 1 to 8"),
        ([A.RandomCrop(8, 11)], r"RandomCrop\(width=11\) is not done here, only 1 to 10"),
        ([A.RandomCrop(8, 9), A.RandomCrop(8, 10)], r"RandomCrop\(width=10\) is not done here, only 1 to 9"),
        ([A.RandomCrop(8, 8, p=0.5)], r"RandomCrop\(p=0.5\) is not done here, only 1.0"),
        ([A.RandomCrop(8, 8, pad_if_needed=True)], r"RandomCrop\(pad_if_needed=True\) is not done here, only False"),
        ([A.CoarseDropout((1, 2))], r"CoarseDropout\(num_holes_range=\(1, 2\)\) is not done here, only \(1, 1\)"),
        (
            [A.CoarseDropout((1, 1), (0.1, 0.2), (1, 1))],
            r"CoarseDropout\(hole_height_range=\(0.1, 0.2\)\) is not done.* only one whole number from 1 to 8, twice",
        ),
        ([A.CoarseDropout((1, 1), (0.5, 0.5), (1, 1))], r"hole_height_range=\(0.5, 0.5\)\) is not done here"),
        ([A.CoarseDropout((1, 1), (1.0, 1.0), (1, 1))], r"hole_height_range=\(1.0, 1.0\)\) is not done here"),
        ([A.CoarseDropout((1, 1), (0, 0), (1, 1))], r"hole_height_range=\(0, 0\)\) is not done here"),
        ([A.CoarseDropout((1, 1), (1, 1), (2, 3))], r"hole_width_range=\(2, 3\)\) is not done here.* from 1 to 10"),
        ([hole(9, 8)], r"hole_height_range=\(9, 9\)\) is not done here"),
        ([hole(8, 11)], r"hole_width_range=\(11, 11\)\) is not done here"),
        ([A.RandomCrop(8, 9), hole(8, 10)], r"hole_width_range=\(10, 10\)\) is not done here.* from 1 to 9"),
        (
            [hole(2, 2, "random")],
            r"CoarseDropout\(fill='random'\) is not done here, only a number from 0 to 255, or 3 of them",
        ),
        ([hole(2, 2, (1, 2))], r"fill=\(1.0, 2.0\)\) is not done here"),
        ([hole(2, 2, 256)], r"fill=256.0\) is not done here"),
        ([hole(2, 2, (0, -1, 0))], r"fill=\(0.0, -1.0, 0.0\)\) is not done here"),
        (
            [A.CoarseDropout((1, 1), (2, 2), (2, 2), fill_mask=0)],
            r"CoarseDropout\(fill_mask=0.0\) is not done here, only None",
        ),
    ],
)
def test_what_is_not_reproduced_is_refused(compose, message):
    with pytest.raises(ValueError, match=message) as caught:
        BatchedTransform(A.Compose(compose), (8, 10, 3))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("compose", "message"),
    [
        (A.Sequential([]), "Sequential is not done here, only Compose"),
        (A.ReplayCompose([]), "ReplayCompose is not done here, only Compose"),
        (A.Compose([], p=0.5), r"Compose\(p=0.5\) is not done here, only 1.0"),
        (
            A.Compose([A.HorizontalFlip()], bbox_params=A.BboxParams("yolo"), keypoint_params=A.KeypointParams("xy")),
            "Compose with bboxes, keypoints is not done here, only with image",
        ),
        (A.Compose([], additional_targets={"other": "image"}), "Compose with other is not done here"),
    ],
)
def test_a_composition_of_another_kind_is_refused(compose, message):
    with pytest.raises(ValueError, match=message):
        BatchedTransform(compose, (8, 10, 3))


def test_a_subclass_may_do_anything_and_is_refused():
    class Upside(A.HorizontalFlip):
        def apply(self, img, **params):
            return img[::-1]

    with pytest.raises(ValueError, match="Upside is not done here"):
        BatchedTransform(A.Compose([Upside()]), (8, 10, 3))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (noise(4, 10, 8, 3), r"the images are torch.uint8 \(10, 8, 3\), and the transform is for torch.uint8 \(8, 10"),
        (noise(4, 8, 10, 1), r"the images are torch.uint8 \(8, 10, 1\)"),
        (noise(4, 8, 10, 3).float(), r"the images are torch.float32 \(8, 10, 3\)"),
        (noise(1, 8, 10, 3), "there are draws for 4 images, and 1 images"),
        (noise(5, 8, 10, 3), "there are draws for 4 images, and 5 images"),
    ],
)
def test_other_images_than_it_was_made_for_are_refused(images, message):
    transform = BatchedTransform(A.Compose([A.RandomCrop(4, 4)]), (8, 10, 3))
    with pytest.raises(ValueError, match=message):
        transform.apply(images, transform.draw(np.random.default_rng(0), 4))
