import dataclasses
import tempfile

import numpy as np
import pytest
import torch

from s10_resnet.config import Config
from s10_resnet.data import dataset as data
from s10_resnet.data import synthetic
from s10_resnet.data.dataset import Split
from s10_resnet.data.loader import AugmentedBatches, DeviceBatches
from s10_resnet.errors import InputError
from s10_resnet.training import session
from s10_resnet.utils import runtime


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    parts = tuple(Split(*synthetic.draw(200, seed), synthetic.CLASSES) for seed in (1, 2))
    monkeypatch.setattr(data, "load_synthetic", lambda: parts)
    return parts


EVERY_KNOB = {
    "peak_beta1": 0.85,
    "optimizer_betas": (0.95, 0.99),
    "bias_lr_factor": 4.0,
    "norm_momentum": 0.3,
    "dirac_init": True,
    "whitening_init": True,
    "flip": "alternating",
    "cutout_probability": 0.25,
    "rotation": 5.0,
    "color_jitter": 0.1,
}


def begin(**settings):
    return session.begin(Config(**{"dataset": "synthetic", "device": "cpu", "batch_size": 25, **settings}))


def test_everything_left_open_is_settled(few_images):
    run = begin()
    assert (run.dataset, run.split, run.workers) == ("synthetic", "test", 0)
    assert run.runtime.precision == runtime.best_precision(torch.device("cpu"))
    assert run.train is few_images[0]
    assert run.evaluation is few_images[1]


def test_held_out_images_are_not_trained_on_and_come_from_the_training_images(few_images):
    run = begin(val_size=50)
    assert (run.split, len(run.train.labels), len(run.evaluation.labels)) == ("val", 150, 50)
    trained_on, held, all_of_them = (
        {image.tobytes() for image in images} for images in (run.train.images, run.evaluation.images, few_images[0][0])
    )
    assert trained_on.isdisjoint(held)
    assert trained_on | held == all_of_them


def test_limit_takes_the_first_images(few_images):
    run = begin(limit=60)
    train, test = few_images
    np.testing.assert_array_equal(run.train.images, train.images[:60])
    np.testing.assert_array_equal(run.evaluation.labels, test.labels[:12])


def test_the_images_held_out_do_not_depend_on_limit_or_seed():
    held = begin(val_size=50).evaluation
    np.testing.assert_array_equal(begin(val_size=50, limit=60, seed=5).evaluation.images, held.images[:12])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 201}, "--batch-size 201: must be at most the number of training images, 200"),
        ({"batch_size": 26, "limit": 25}, "--batch-size 26: must be at most the number of training images, 25"),
        ({"val_size": 200}, "--val-size 200: must be below the number of training images, 200"),
    ],
)
def test_settings_that_do_not_fit_the_data(settings, message):
    with pytest.raises(InputError, match=message):
        begin(**settings)


@pytest.mark.parametrize(("limit", "batch_size"), [(60, 25), (60, 32)])
def test_processes_need_equal_shares(monkeypatch, limit, batch_size):
    class Two(runtime.Runtime):
        def total(self, tensor):
            return tensor

    two = Two(torch.device("cpu"), "fp32", None, world_size=2)
    monkeypatch.setattr(runtime, "start", lambda *_, **__: two)
    if batch_size % 2:
        with pytest.raises(InputError, match=r"^--batch-size 25: must be a multiple of the 2 processes"):
            begin(limit=limit, batch_size=batch_size)
    else:
        assert begin(limit=limit, batch_size=batch_size).runtime.world_size == 2
        with pytest.raises(InputError, match=r"the 29 images that an epoch of 61 leaves for its last batch"):
            begin(limit=61, batch_size=batch_size)


def test_augmenting_on_the_device_takes_no_workers(monkeypatch):
    monkeypatch.setattr(runtime, "default_workers", lambda device: 3)
    assert begin().workers == 3
    assert begin(augment_on="device").workers == 0
    assert begin(augment_on="device", workers=0).workers == 0
    message = r"^--workers 3: must be auto or 0 with --augment-on device"
    with pytest.raises(InputError, match=message):
        begin(augment_on="device", workers=3)


def test_where_images_are_augmented():
    kinds = {"cpu": AugmentedBatches, "device": DeviceBatches}
    for place, kind in kinds.items():
        run = begin(augment_on=place, limit=60)
        loader = session.loader(run, epochs=1)
        assert type(loader.dataset) is kind
        images, labels = next(iter(loader))
        assert (images.shape, images.dtype, labels.dtype) == ((25, 32, 32, 3), torch.uint8, torch.int64)
        samples, names = session.samples(run)
        np.testing.assert_array_equal(samples, images.numpy())
        assert names == [run.train.classes[label] for label in labels]


def test_workers_that_could_send_nothing_are_told_at_once(tmp_path, monkeypatch):
    folder = tmp_path / ("x" * 100)  # the paths of sockets end at 107 bytes
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(InputError, match=r"^--workers 2: must be 0, or TMPDIR .* \(AF_UNIX path too long\)$"):
        begin(workers=2)
    assert not list(folder.iterdir())
    assert begin(workers=0).workers == 0


def test_another_recipe_keeps_machine_and_images():
    run = begin(limit=60)
    other = Config(dataset="synthetic", batch_size=30, max_lr=0.1)
    again = session.with_recipe(run, other)
    assert again == run._replace(config=other)
    assert again.steps_per_epoch == 2


def test_what_lies_on_a_device_is_not_pinned(monkeypatch):
    monkeypatch.setattr(session, "DeviceBatches", lambda split, device, **augmentation: [])
    run = begin(limit=60)
    for device, place, pinned in (("cuda", "cpu", True), ("cuda", "device", False), ("cpu", "cpu", False)):
        there = run._replace(
            runtime=dataclasses.replace(run.runtime, device=torch.device(device)),
            config=dataclasses.replace(run.config, augment_on=place),
        )
        assert session.loader(there, epochs=1).pin_memory == pinned


def test_rank_0_can_be_asked_to_work_alone():
    run = begin(limit=60)
    shared = run._replace(runtime=dataclasses.replace(run.runtime, rank=1, world_size=2))
    images, _ = next(iter(session.loader(shared.alone, epochs=1)))
    assert len(images) == 25
    images, _ = next(iter(session.loader(shared, epochs=1)))
    assert len(images) == 12


def test_the_environment_names_what_the_bits_depend_on():
    environment = begin().environment
    assert (environment["device"], environment["processes"]) == ("cpu", 1)
    assert environment["precision"] == runtime.best_precision(torch.device("cpu"))
    assert environment["hardware"]["threads"] == torch.get_num_threads()
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]


def test_the_parts_follow_the_config():
    run = begin(limit=60, optimizer_betas=(0.8, 0.95), weight_decay=0.2, label_smoothing=0.3, crop_padding=0, cutout=0)
    network = session.network(run)
    optimizer = session.optimizer(run, network, lr=0.07)
    assert [(group["lr"], group["betas"]) for group in optimizer.param_groups] == [(0.07, (0.8, 0.95))] * 3
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0, 0.0]
    assert session.criterion(run).label_smoothing == 0.3
    loader = session.loader(run, epochs=2)
    assert len(loader) == 2 * run.steps_per_epoch == 6
    assert len(session.loader(run, epochs=2, first_step=4)) == 2
    pictures = {image.numpy().tobytes() for images, _ in loader for image in images}
    originals = {image.tobytes() for image in run.train.images}
    mirrored = {image[:, ::-1].tobytes() for image in run.train.images}
    assert pictures <= originals | mirrored  # of the augmentation, the flip alone is on
    assert pictures & mirrored


def norms(network):
    return [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]


def test_the_knobs_of_the_network_reach_it():
    plain, set_up = (session.network(begin(limit=60, **knobs)).resnet for knobs in ({}, EVERY_KNOB))
    assert {module.momentum for module in norms(plain)} == {0.1}
    assert {module.momentum for module in norms(set_up)} == {0.3}
    x = torch.randn(1, 64, 8, 8)
    for network, passes in ((plain, False), (set_up, True)):
        assert torch.allclose(network.layer1[0].conv(x)[:, :64], x, atol=1e-6) == passes
    kernels = set_up.prep.conv.weight
    assert torch.equal(kernels[:27], -kernels[27:54])
    assert torch.equal(kernels[54:], plain.prep.conv.weight[54:])


def test_the_first_convolution_whitens_what_it_sees():
    run = begin(whitening_init=True)
    network = session.network(run)
    with torch.no_grad():
        pixels = network.normalize(torch.from_numpy(run.train.images))
        responses = torch.nn.functional.conv2d(pixels, network.resnet.prep.conv.weight[:8])
    covariance = responses.transpose(0, 1).flatten(1).cov()
    torch.testing.assert_close(covariance, torch.eye(8), atol=0.02, rtol=0)


def test_the_knobs_of_the_optimizer_reach_it():
    run = begin(limit=60, **EVERY_KNOB)
    state = session.training_state(run, max_lr=0.1)
    for _ in range(run.steps_per_epoch * run.config.epochs - 1):
        state.optimizer.step()
        state.scheduler.step()
    state.optimizer.step()
    group = state.optimizer.param_groups[2]
    assert {id(parameter) for parameter in group["params"]} == {id(norm.bias) for norm in norms(state.model)}
    assert group["lr"] == pytest.approx(4 * state.optimizer.param_groups[0]["lr"])
    assert group["base_momentum"] == 0.85
    assert group["betas"] == pytest.approx((0.95, 0.99))  # at the end, where it began


def test_the_knobs_of_the_augmentation_reach_it():
    batches = session.loader(begin(limit=60, **EVERY_KNOB), epochs=1).dataset
    steps = batches.transform.transforms
    assert [type(step).__name__ for step in steps] == ["Rotate", "RandomCrop", "ColorJitter", "CoarseDropout"]
    assert (steps[0].limit, steps[2].brightness, steps[3].p) == ((-5.0, 5.0), (0.9, 1.1), 0.25)
    assert batches.alternating
    done_there = {**EVERY_KNOB, "rotation": 0, "color_jitter": 0, "augment_on": "device"}
    assert session.loader(begin(limit=60, **done_there), epochs=1).dataset.alternating


@pytest.mark.parametrize(("name", "flag"), [("rotation", "--rotation"), ("color_jitter", "--color-jitter")])
def test_what_the_batch_executor_cannot_do_is_refused_at_once(name, flag):
    with pytest.raises(InputError, match=rf"^{flag} 0\.5: must be 0 with --augment-on device$"):
        begin(augment_on="device", **{name: 0.5})


@pytest.mark.parametrize("place", ["cpu", "device"])
def test_mixing_reaches_the_batches_of_its_epochs(place):
    settings = {"mix": "cutmix", "mix_alpha": 0.7, "mix_from": 0.25, "mix_until": 0.5, "epochs": 4}
    run = begin(limit=60, augment_on=place, **settings)
    batches = list(session.loader(run, epochs=4))
    assert [targets.ndim for _, targets in batches] == [1] * 3 + [2] * 3 + [1] * 6
    assert session.mix(run, 4).alpha == 0.7
    _, names = session.samples(begin(limit=60, augment_on=place, **settings))
    assert set(names) <= set(run.train.classes)
    assert names == session.samples(begin(limit=60, augment_on=place))[1]
    _, mixed = session.samples(begin(limit=60, augment_on=place, **{**settings, "mix_from": 0.0}))
    larger, smaller = zip(*(name.split(" + ") for name in mixed if "+" in name), strict=True)
    assert len(larger) > 15
    assert set(larger + smaller) <= set(run.train.classes)
    assert all(name in own for name, own in zip(names, mixed, strict=True))


def test_weights_follow_the_seed_alone():
    first, again, other = (session.network(begin(seed=seed)).resnet.linear.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_evaluation_images_are_the_pixels_themselves(few_images):
    images, labels = session.evaluation_tensors(begin())
    np.testing.assert_array_equal(images, few_images[1].images)
    np.testing.assert_array_equal(labels, few_images[1].labels)
