import contextlib
import hashlib
import multiprocessing
import os
import shutil
import signal
import tempfile
from itertools import pairwise
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from s10_resnet.data import loader as data_loader
from s10_resnet.data.dataset import Split
from s10_resnet.data.loader import (
    AugmentedBatches,
    BatchSpec,
    DeviceAugmentedBatches,
    StatelessBatchSampler,
    check_worker_sockets,
    create_loader,
    fit_shared_memory,
    iterate_batches,
)
from s10_resnet.data.transforms import MEAN, reflect_pad
from s10_resnet.errors import InputError, explain_system_error
from s10_resnet.utils import signals

OFF = {"crop_padding": 0, "flip": "none", "cutout_size": 0}
DEFAULT = {"crop_padding": 4, "flip": "random", "cutout_size": 8}


def on_device(split, **augmentation):
    return DeviceAugmentedBatches(split, torch.device("cpu"), **augmentation)


def load_all(split, workers, epochs=2, batch_size=16, seed=3):
    sampler = StatelessBatchSampler(len(split.labels), batch_size, epochs, seed)
    loader = create_loader(AugmentedBatches(split, **DEFAULT), sampler, workers=workers, pin_memory=False)
    with iterate_batches(loader) as batches:
        return list(batches)


# The sampler


def test_every_image_comes_once_an_epoch_in_a_new_order():
    sampler = StatelessBatchSampler(num_images=50, batch_size=16, epochs=3, seed=0)
    assert (sampler.steps_per_epoch, len(sampler)) == (4, 12)
    specs = list(sampler)
    assert [len(spec.indices) for spec in specs] == [16, 16, 16, 2] * 3
    assert [spec.key for spec in specs[:5]] == [(0, 0, 0, 0), (0, 0, 1, 0), (0, 0, 2, 0), (0, 0, 3, 0), (0, 1, 0, 0)]
    orders = [np.concatenate([spec.indices for spec in specs[4 * e : 4 * e + 4]]) for e in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[1], orders[2])


@pytest.mark.parametrize("first_step", [0, 1, 3, 4, 5, 8, 11, 12])
def test_the_sampler_starts_at_any_step(first_step):
    def comparable(sampler):
        return [(spec.key, spec.indices.tolist()) for spec in sampler]

    rest = StatelessBatchSampler(50, 16, 3, seed=0, first_step=first_step)
    assert comparable(rest) == comparable(StatelessBatchSampler(50, 16, 3, seed=0))[first_step:]
    assert len(rest) == 12 - first_step


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_take_every_so_many_th_image_of_every_batch(world_size):
    samplers = [StatelessBatchSampler(48, 16, 2, 5, rank=rank, world_size=world_size) for rank in range(world_size)]
    for spec, *shares in zip(StatelessBatchSampler(48, 16, 2, seed=5), *samplers, strict=True):
        for rank, share in enumerate(shares):
            assert share.key == (*spec.key[:3], rank)
            np.testing.assert_array_equal(share.indices, spec.indices[rank::world_size])


# Batches


@pytest.mark.parametrize(
    ("make", "flip", "digest"),
    [
        (AugmentedBatches, "random", "bfa6496825b6dcd152de5e6cbbac9c6f6305489cff9e135e3088cdd2d0ffc8a9"),
        (on_device, "random", "637fa84766bc7f1714037b2d03cc86bd2ecededcf534953a54446bcca9e2736a"),
        (AugmentedBatches, "alternating", "9b2d7fede1a4aeb6b05fd1a41d0a5b9cb2b39dd35d4aa211293ac2cb9d791651"),
        (on_device, "alternating", "9d12854920dd812ce65a7b455611f437e558a4f458bcbabaff4638605ad51554"),
    ],
)
def test_batches_have_the_bits_that_they_always_had(noise_images, make, flip, digest):
    """Published results are of these random streams."""
    batches = make(Split(noise_images, np.arange(20) % 10, ()), **{**DEFAULT, "flip": flip})
    sha = hashlib.sha256()
    for spec in StatelessBatchSampler(20, 8, epochs=2, seed=3):
        for tensor in batches[spec]:
            sha.update(tensor.numpy().tobytes())
    assert sha.hexdigest() == digest


@pytest.mark.parametrize("make", [AugmentedBatches, on_device])
def test_without_augmentation_a_batch_is_a_subset(split, make):
    spec = BatchSpec((0, 0, 0, 0), np.array([7, 7, 3]))
    images, labels = make(split, **OFF)[spec]
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
    np.testing.assert_array_equal(images, split.images[spec.indices])
    np.testing.assert_array_equal(labels, split.labels[spec.indices])


@pytest.mark.parametrize("make", [AugmentedBatches, on_device])
def test_a_batch_is_a_function_of_its_spec(split, make):
    batches, indices = make(split, **DEFAULT), np.arange(50)
    first = batches[BatchSpec((0, 0, 0, 0), indices)][0]
    others = [batches[BatchSpec(key, indices)][0] for key in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))]
    assert torch.equal(first, make(split, **DEFAULT)[BatchSpec((0, 0, 0, 0), indices)][0])
    assert not any(torch.equal(first, other) for other in others)


def test_the_device_makes_what_the_transform_may_make(split):
    """Each image is one of those that Albumentations can make of it: every crop, flipped or not, and every hole."""
    one = Split(split.images[:1], split.labels[:1], split.classes)
    spec = BatchSpec((0, 0, 0, 0), np.zeros(4000, np.int64))
    padded = reflect_pad(one.images, 4)[0]
    crops = [padded[y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    possible = {image.tobytes() for crop in crops for image in (crop, crop[:, ::-1])}
    images, _ = on_device(one, **{**DEFAULT, "cutout_size": 0})[spec]
    assert {image.numpy().tobytes() for image in images} == possible
    with_hole, _ = on_device(one, **{**OFF, "cutout_size": 8})[spec]
    fill = np.array([round(255 * mean) for mean in MEAN])
    positions = {tuple(np.argwhere((image.numpy() == fill).all(-1)).min(0)) for image in with_hole}
    assert {(0, 0), (24, 24), (24, 0), (0, 24)} <= positions


# The alternating flip


def flipped_images(split, seed, epoch, make):
    """Which images are flipped in an epoch; nothing else is done to them, so every pixel tells."""
    spec = BatchSpec((seed, epoch, 0, 0), np.random.default_rng(epoch).permutation(len(split.labels)))
    images = make(split, **{**OFF, "flip": "alternating"})[spec][0].numpy()
    originals = split.images[spec.indices]
    flipped = (images == originals[:, :, ::-1]).all((1, 2, 3))
    assert (flipped ^ (images == originals).all((1, 2, 3))).all()
    result = np.empty_like(flipped)
    result[spec.indices] = flipped
    return result


def test_an_alternating_flip_shows_both_sides_in_any_two_epochs(split):
    epochs = [flipped_images(split, 3, epoch, AugmentedBatches) for epoch in range(4)]
    for one, next_one in pairwise(epochs):
        np.testing.assert_array_equal(one, ~next_one)
    assert 10 < epochs[0].sum() < 40  # of 50
    assert not np.array_equal(epochs[0], flipped_images(split, 4, 0, AugmentedBatches))


def test_an_alternating_flip_is_the_same_on_the_device(split):
    for epoch in range(2):
        one, other = (flipped_images(split, 3, epoch, make) for make in (AugmentedBatches, on_device))
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("make", [AugmentedBatches, on_device])
def test_an_alternating_flip_comes_on_top_of_crop_and_cutout(make):
    y, x = np.mgrid[:32, :32].astype(np.uint8)
    one = Split(np.stack([y, x, y], axis=-1)[None], np.zeros(1, np.int64), ("one",))
    batches, indices = make(one, **{**DEFAULT, "flip": "alternating"}), np.zeros(300, np.int64)
    images = [batches[BatchSpec((0, epoch, 0, 0), indices)][0].numpy().astype(int) for epoch in range(2)]
    steps = [np.median(np.diff(batch[..., 1], axis=2), axis=(1, 2)) for batch in images]  # columns rise, or fall
    assert sorted(np.unique(step).tolist() for step in steps) == [[-1.0], [1.0]]
    assert len({image.tobytes() for image in images[0]}) > 290


# Workers


def test_batches_are_bit_identical_with_any_number_of_workers(split):
    alone = load_all(split, workers=0)
    for workers in (1, 2):
        shared = load_all(split, workers=workers)
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
    results = torch.cat([images for images, _ in load_all(split, workers, epochs=4, batch_size=8)])
    assert len({result.numpy().tobytes() for result in results}) >= 158


def children():
    return {process.pid for process in multiprocessing.active_children()}


class Dataset(torch.utils.data.Dataset):
    """Sends a signal to its own process, from its fifth item on."""

    def __init__(self, kill=0):
        self.kill = kill

    def __len__(self):
        return 100

    def __getitem__(self, index):
        if self.kill and index >= 4:
            os.kill(os.getpid(), self.kill)
        return index


def test_workers_ignore_signals():
    loader = create_loader(Dataset(signal.SIGTERM), range(100), workers=2, pin_memory=False)
    with iterate_batches(loader) as batches:
        assert list(batches) == list(range(100))  # each worker has sent itself dozens


@pytest.mark.skipif(os.name != "posix", reason="signals are a matter of POSIX")
def test_workers_never_get_a_signal_not_even_before_they_are_ready(monkeypatch):
    monkeypatch.setattr(data_loader, "_init_worker", lambda worker_id: None)
    loader = create_loader(Dataset(signal.SIGTERM), range(100), workers=1, pin_memory=False)
    with iterate_batches(loader) as batches:
        assert list(batches) == list(range(100))
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGINT, signal.SIGTERM}


@pytest.mark.parametrize("error", [None, KeyError, KeyboardInterrupt])
def test_no_worker_is_left_however_the_block_ends(error):
    before = children()
    loader = create_loader(Dataset(), range(100), workers=2, pin_memory=False)
    with contextlib.suppress(KeyError, KeyboardInterrupt), iterate_batches(loader) as batches:
        next(batches)
        assert len(children() - before) == 2
        if error:
            raise error
    assert children() == before


def give_shared_memory(monkeypatch, tmp_path, free):
    monkeypatch.setattr(data_loader, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))


@pytest.mark.parametrize(
    ("free", "workers", "expected"),
    [
        (2**40, 16, (16, 4)),
        (64 * 2**20, 2, (2, 4)),
        (64 * 2**20, 12, (12, 3)),  # of a container: 4 batches each would take 76 MB
        (64 * 2**20, 16, (16, 2)),
        (10 * 2**20, 16, (4, 1)),
        (2**20, 16, (0, 0)),
        (0, 1, (0, 0)),
        (0, 0, (0, 4)),
    ],
)
def test_the_batches_of_all_workers_fit_into_shared_memory(monkeypatch, tmp_path, free, workers, expected):
    give_shared_memory(monkeypatch, tmp_path, free)
    batch_bytes = 512 * 3080
    fitting, prefetch = fit_shared_memory(workers, batch_bytes)
    assert (fitting, prefetch) == expected
    assert not fitting or (fitting * prefetch + 2) * batch_bytes <= free


def test_ranks_share_the_shared_memory(monkeypatch, tmp_path):
    give_shared_memory(monkeypatch, tmp_path, 64 * 2**20)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert fit_shared_memory(12, 512 * 3080) == (12, 1)


def test_a_system_without_shared_memory_as_a_folder_has_no_bound(monkeypatch, tmp_path):
    monkeypatch.setattr(data_loader, "SHARED_MEMORY", tmp_path / "missing")
    assert fit_shared_memory(16, 2**60) == (16, 4)


def test_a_loader_of_fewer_workers_says_so_and_loads_the_same(split, monkeypatch, tmp_path, capsys):
    expected = load_all(split, workers=2)
    assert not capsys.readouterr().err
    give_shared_memory(monkeypatch, tmp_path, 10_000)
    sampler = StatelessBatchSampler(len(split.labels), 16, 2, 3)
    loader = create_loader(AugmentedBatches(split, **DEFAULT), sampler, workers=2, pin_memory=False, batch_size=16)
    assert loader.num_workers == 0
    assert f"{tmp_path} has no room for the batches of 2 workers: 0 are used." in capsys.readouterr().err
    with iterate_batches(loader) as batches:
        for ours, theirs in zip(batches, expected, strict=True):
            assert torch.equal(ours[0], theirs[0])


def test_a_full_shared_memory_is_an_error_and_not_a_hang(split, monkeypatch):
    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(RuntimeError) as caught:
        load_all(split, workers=1)
    assert explain_system_error(caught.value).startswith("/dev/shm is too small")
    assert len(load_all(split, workers=0)) == 8  # nothing is shared then


def test_only_a_worker_shares_the_memory_of_its_batches(split, monkeypatch):
    batches, spec = AugmentedBatches(split, **OFF), BatchSpec((0, 0, 0, 0), np.arange(2))
    assert not batches[spec][0].is_shared()
    monkeypatch.setattr(data_loader, "get_worker_info", lambda: "a worker")
    assert batches[spec][0].is_shared()


def test_a_worker_starts_no_threads_and_ignores_signals():
    handlers, threads = {name: signal.getsignal(name) for name in signals.SIGNALS}, cv2.getNumThreads()
    try:
        data_loader._init_worker(0)
        assert cv2.getNumThreads() == 1
        assert {signal.getsignal(name) for name in signals.SIGNALS} == {signal.SIG_IGN}
    finally:
        cv2.setNumThreads(threads)
        for name, handler in handlers.items():
            signal.signal(name, handler)


def test_a_killed_worker_is_an_error_of_the_system():
    loader = create_loader(Dataset(signal.SIGKILL), range(100), workers=1, pin_memory=False)
    with pytest.raises(RuntimeError) as caught, iterate_batches(loader) as batches:
        list(batches)
    assert "a worker was killed" in explain_system_error(caught.value)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="sockets with paths are a matter of POSIX")
def test_a_temporary_folder_without_room_for_sockets_is_refused(tmp_path, monkeypatch):
    check_worker_sockets(1)
    folder = tmp_path / ("x" * 100)  # a socket's path has at most 107 bytes
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(InputError, match=r"^--workers 2: must be 0, or TMPDIR another folder: ") as caught:
        check_worker_sockets(2)
    assert str(folder) in str(caught.value)
    assert not list(folder.iterdir())
    check_worker_sockets(0)
