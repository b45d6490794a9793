import contextlib
import multiprocessing
import os
import signal
from itertools import pairwise

import numpy as np
import pytest
import torch

from s10_resnet.data.dataset import Split
from s10_resnet.data.loader import AugmentedBatches, DeviceBatches, Plan, Plans, running, train_loader
from s10_resnet.data.transforms import MEAN, pad
from s10_resnet.utils import faults

OFF = {"crop_padding": 0, "flip": "none", "cutout": 0}
ALL = {"crop_padding": 4, "flip": "random", "cutout": 8}


def batches_of(split, workers, epochs=2, batch_size=16, seed=3, **augmentation):
    loader = train_loader(
        AugmentedBatches(split, **(augmentation or ALL)),
        Plans(len(split.labels), batch_size, epochs, seed),
        workers=workers,
        pin_memory=False,
    )
    with running(loader) as batches:  # a worker that is left ignores the end of this process, which waits for it
        return list(batches)


def test_every_image_comes_once_an_epoch_in_a_new_order():
    plans = Plans(images=50, batch_size=16, epochs=3, seed=0)
    assert (plans.steps_per_epoch, len(plans)) == (4, 12)
    drawn = list(plans)
    assert [len(plan.samples) for plan in drawn] == [16, 16, 16, 2] * 3
    assert [plan.key[:3] for plan in drawn[:5]] == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3), (0, 1, 0)]
    orders = [np.concatenate([plan.samples for plan in drawn[4 * e : 4 * e + 4]]) for e in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[1], orders[2])


def test_the_order_follows_the_seed():
    first, again, other = (next(iter(Plans(50, 16, 1, seed))).samples for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_device_makes_the_batches_of_the_plans(split):
    plan = Plan((0, 0, 0, 0), np.array([7, 7, 3]))
    images, labels = DeviceBatches(split, torch.device("cpu"), **OFF)[plan]
    np.testing.assert_array_equal(images, split.images[plan.samples])
    assert labels.tolist() == split.labels[plan.samples].tolist()


def test_a_device_draws_anew_for_every_key_alone(split):
    batches = DeviceBatches(split, torch.device("cpu"), **ALL)
    samples = np.arange(50)
    first = batches[Plan((0, 0, 0, 0), samples)][0]
    others = [batches[Plan(key, samples)][0] for key in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))]
    assert torch.equal(first, DeviceBatches(split, torch.device("cpu"), **ALL)[Plan((0, 0, 0, 0), samples)][0])
    assert not any(torch.equal(first, other) for other in others)


def test_a_device_augments_as_the_declared_transform_may(split):
    """Each image is one of those that Albumentations can make of it: every window, either way round, every hole."""
    one = Split(split.images[:1], split.labels[:1], split.classes)
    plan = Plan((0, 0, 0, 0), np.zeros(4000, np.int64))
    padded = pad(one.images, 4)[0]
    windows = [padded[y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    possible = {image.tobytes() for window in windows for image in (window, window[:, ::-1])}
    images, _ = DeviceBatches(one, torch.device("cpu"), **{**ALL, "cutout": 0})[plan]
    assert {image.numpy().tobytes() for image in images} == possible
    holed, _ = DeviceBatches(one, torch.device("cpu"), **{**OFF, "cutout": 8})[plan]
    fill = np.array([round(255 * mean) for mean in MEAN])
    places = {tuple(np.argwhere((image.numpy() == fill).all(-1)).min(0)) for image in holed}
    assert {(0, 0), (24, 24), (24, 0), (0, 24)} <= places


def orientations(split, seed, epoch, make):
    """Which images of a data set come mirrored in an epoch: nothing else is done to them, so every pixel tells."""
    plan = Plan((seed, epoch, 0, 0), np.random.default_rng(epoch).permutation(len(split.labels)))
    images, labels = make(split, crop_padding=0, flip="alternating", cutout=0)[plan]
    assert labels.tolist() == split.labels[plan.samples].tolist()
    originals = split.images[plan.samples]
    turned = (images.numpy() == originals[:, :, ::-1]).all((1, 2, 3))
    assert (turned ^ (images.numpy() == originals).all((1, 2, 3))).all()
    result = np.empty_like(turned)
    result[plan.samples] = turned
    return result


def on_device(split, **augmentation):
    return DeviceBatches(split, torch.device("cpu"), **augmentation)


@pytest.mark.parametrize("make", [AugmentedBatches, on_device])
def test_an_alternating_flip_shows_both_sides_in_any_two_epochs(split, make):
    epochs = [orientations(split, 3, epoch, make) for epoch in range(4)]
    for one, next_one in pairwise(epochs):
        np.testing.assert_array_equal(one, ~next_one)
    assert 10 < epochs[0].sum() < 40  # of 50
    assert not np.array_equal(epochs[0], orientations(split, 4, 0, make))


def test_an_alternating_flip_is_the_same_wherever_it_is_done(split):
    for epoch in range(2):
        one, other = (orientations(split, 3, epoch, make) for make in (AugmentedBatches, on_device))
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("make", [AugmentedBatches, on_device])
def test_an_alternating_flip_comes_on_top_of_crop_and_cutout(make):
    y, x = np.mgrid[:32, :32].astype(np.uint8)
    one = Split(np.stack([y, x, y], axis=-1)[None], np.zeros(1, np.int64), ("one",))
    batches, samples = make(one, crop_padding=4, flip="alternating", cutout=8), np.zeros(300, np.int64)
    images = [batches[Plan((0, epoch, 0, 0), samples)][0].numpy().astype(int) for epoch in range(2)]
    steps = [np.median(np.diff(batch[..., 1], axis=2), axis=(1, 2)) for batch in images]  # columns rise, or fall
    assert sorted(np.unique(step).tolist() for step in steps) == [[-1.0], [1.0]]
    assert len({image.tobytes() for image in images[0]}) > 290


@pytest.mark.parametrize("make", [AugmentedBatches, on_device])
def test_what_mixes_gets_the_augmented_batch_and_its_key(split, make):
    given = []

    def mix(key, images, labels):
        given.append((key, images, labels))
        return images + 1, labels.float()

    plan = Plan((5, 1, 2, 0), np.array([3, 1, 4]))
    images, targets = make(split, **{**OFF, "mix": mix})[plan]
    ((key, plain, labels),) = given
    assert key == plan.key
    np.testing.assert_array_equal(plain, split.images[plan.samples])
    np.testing.assert_array_equal(labels, split.labels[plan.samples])
    assert torch.equal(images, plain + 1)
    assert targets.dtype == torch.float32


@pytest.mark.parametrize("flip", ["random", "none"])
def test_the_other_flips_are_left_to_the_transform(split, flip):
    batches = AugmentedBatches(split, crop_padding=0, flip=flip, cutout=0)
    names = [type(step).__name__ for step in batches.transform.transforms]
    assert names == (["HorizontalFlip"] if flip == "random" else [])
    assert not batches.alternating


@pytest.mark.parametrize("first_step", range(13))
def test_a_run_goes_on_from_any_step(first_step):
    def comparable(plans):
        return [(plan.key, plan.samples.tolist()) for plan in plans]

    rest = Plans(50, 16, 3, seed=0, first_step=first_step)
    assert comparable(rest) == comparable(Plans(50, 16, 3, seed=0))[first_step:]
    assert len(rest) == 12 - first_step


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_every_batch_among_them(world_size):
    whole = list(Plans(48, 16, 2, seed=5))
    parts = zip(*(Plans(48, 16, 2, 5, rank=rank, world_size=world_size) for rank in range(world_size)), strict=True)
    for plan, shares in zip(whole, parts, strict=True):
        assert {len(share.samples) for share in shares} == {16 // world_size}
        np.testing.assert_array_equal(np.sort(np.concatenate([s.samples for s in shares])), np.sort(plan.samples))
        assert [share.key for share in shares] == [(*plan.key[:3], rank) for rank in range(world_size)]


def test_without_augmentation_the_pixels_are_the_data_sets(split):
    plan = Plan((0, 0, 0, 0), np.array([3, 1, 4]))
    images, labels = AugmentedBatches(split, **OFF)[plan]
    assert images.dtype == torch.uint8
    np.testing.assert_array_equal(images, split.images[[3, 1, 4]])
    np.testing.assert_array_equal(labels, split.labels[[3, 1, 4]])


def test_batches_are_the_same_bits_with_any_number_of_workers(split):
    alone = batches_of(split, workers=0)
    for workers in (1, 2):
        shared = batches_of(split, workers=workers)
        assert len(shared) == len(alone) == 8
        for (images, labels), (expected_images, expected_labels) in zip(shared, alone, strict=True):
            assert torch.equal(images, expected_images)
            assert torch.equal(labels, expected_labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_two_draws_are_alike_over_batches_workers_and_epochs(workers):
    # One picture, forty times, every pixel telling its place: equal results could only come from equal draws. There are
    # 81 crops, 2 orientations and 625 places of the cutout: in 160 draws, 0.1 pairs are equal by chance.
    y, x = np.mgrid[:32, :32].astype(np.uint8)
    image = np.stack([y, x, y + x], axis=-1)
    split = Split(np.repeat(image[None], 40, axis=0), np.zeros(40, np.int64), ("one",))
    results = torch.cat([images for images, _ in batches_of(split, workers, epochs=4, batch_size=8)])
    assert len({result.numpy().tobytes() for result in results}) >= 158


def test_the_data_set_itself_is_never_changed(split):
    before = split.images.copy()
    batches_of(split, workers=0)
    np.testing.assert_array_equal(split.images, before)


def children():
    return {process.pid for process in multiprocessing.active_children()}


class Dataset(torch.utils.data.Dataset):
    """Tells what its worker does with the signals, or dies of one."""

    def __init__(self, kill=0):
        self.kill = kill

    def __len__(self):
        return 100

    def __getitem__(self, index):
        if self.kill and index >= 4:
            os.kill(os.getpid(), self.kill)
        return index


def test_a_signal_to_the_whole_group_is_left_to_the_main_process():
    loader = train_loader(Dataset(signal.SIGTERM), range(100), workers=2, pin_memory=False)
    with running(loader) as batches:
        assert list(batches) == list(range(100))  # each worker has sent itself dozens


@pytest.mark.skipif(os.name != "posix", reason="signals are a matter of POSIX")
def test_workers_never_get_a_signal_not_even_before_they_are_ready(monkeypatch):
    monkeypatch.setattr("s10_resnet.data.loader._start_worker", lambda worker: None)
    loader = train_loader(Dataset(signal.SIGTERM), range(100), workers=1, pin_memory=False)
    with running(loader) as batches:
        assert list(batches) == list(range(100))
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGINT, signal.SIGTERM}


@pytest.mark.parametrize("error", [None, KeyError, KeyboardInterrupt])
def test_no_worker_is_left_however_a_run_ends(error):
    before = children()
    loader = train_loader(Dataset(), range(100), workers=2, pin_memory=False)
    with contextlib.suppress(KeyError, KeyboardInterrupt), running(loader) as batches:
        next(batches)
        assert len(children() - before) == 2
        if error:
            raise error
    assert children() == before


def test_a_batch_that_finds_no_place_in_shared_memory_is_told_and_not_waited_for(split, monkeypatch):
    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(RuntimeError) as caught:
        batches_of(split, workers=1)
    assert faults.explain(caught.value).startswith("/dev/shm is too small")
    assert len(batches_of(split, workers=0)) == 8  # nothing is shared then


def test_a_killed_worker_is_an_error_of_the_machine():
    loader = train_loader(Dataset(signal.SIGKILL), range(100), workers=1, pin_memory=False)
    with pytest.raises(RuntimeError) as caught, running(loader) as batches:
        list(batches)
    assert "a worker was killed" in faults.explain(caught.value)
