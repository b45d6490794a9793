import subprocess
import sys
import tempfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from s10_resnet.config import TrainConfig
from s10_resnet.data import dataset, loader
from s10_resnet.data.loader import AugmentedBatches, DeviceAugmentedBatches
from s10_resnet.data.transforms import reflect_pad
from s10_resnet.errors import InputError
from s10_resnet.training.optim import planned_lrs
from s10_resnet.training.setup import _resolve_augment_on, create_setup
from s10_resnet.utils.runtime import Runtime, best_precision
from tests.conftest import REPOSITORY
from tests.runs import same_tensors, small_splits


@pytest.fixture(autouse=True)
def _few_images(monkeypatch):
    monkeypatch.setattr(dataset, "load_synthetic", small_splits)


def make(**changes):
    settings = {"dataset": "synthetic", "device": "cpu", "batch_size": 25, "max_train_samples": 60, **changes}
    return create_setup(TrainConfig(**settings))


def runtime_on(device, world_size=1):
    """A runtime of a device that need not be there."""
    return Runtime(torch.device(device), "fp32", world_size=world_size)


@pytest.mark.slow
def test_what_the_first_step_does_not_need_is_not_imported():
    script = """
import sys
from s10_resnet.config import TrainConfig
from s10_resnet.data import dataset, synthetic
from s10_resnet.training import trainer
split = dataset.Split(*synthetic.generate(50, seed=1), synthetic.CLASSES)
dataset.load_synthetic = lambda: (split, split)
setup = trainer.create_setup(TrainConfig(dataset="synthetic", device="cpu", precision="fp32", batch_size=25, epochs=1))
log, training = trainer.TrainingLogger(), trainer.Trainer(setup, 0.01)
log.on_step = lambda state: state.state_dict()  # as of a checkpoint
training.fit(log)
late = "torch_lr_finder torchvision matplotlib jinja2"
print(training.state.step, *(name for name in late.split() if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"


def test_images_are_padded_once(monkeypatch):
    padded = []
    monkeypatch.setattr(loader, "reflect_pad", lambda images, pixels: padded.append(1) or reflect_pad(images, pixels))
    setup = make()
    batches = setup.build_loader(epochs=1).dataset
    images, names = setup.first_batch()
    first, labels = next(iter(setup.single_process().build_loader(epochs=2)))
    assert len(padded) == 1
    np.testing.assert_array_equal(images, first)
    assert names == [setup.train.classes[label] for label in labels]
    assert setup.with_config(setup.config.replace(flip="none")).batches is not batches


def test_everything_left_open_is_resolved():
    setup = make(max_train_samples=0)
    assert (setup.dataset, setup.eval_split, setup.workers, setup.augment_on) == ("synthetic", "test", 0, "cpu")
    assert setup.runtime.precision == best_precision(torch.device("cpu"))
    train, test = small_splits()
    assert setup.train is train
    assert setup.eval is test
    assert setup.steps_per_epoch == 8
    assert setup.description.startswith("synthetic: 200 training and 200 test images; cpu, ")


def test_held_out_images_are_not_trained_on_and_come_from_the_training_images():
    setup = make(val_size=50, max_train_samples=0)
    assert (setup.eval_split, len(setup.train.labels), len(setup.eval.labels)) == ("val", 150, 50)
    trained_on, held_out, all_images = (
        {image.tobytes() for image in images}
        for images in (setup.train.images, setup.eval.images, small_splits()[0].images)
    )
    assert trained_on.isdisjoint(held_out)
    assert trained_on | held_out == all_images


def test_the_first_images_are_used_whatever_the_seed():
    setup, (train, test) = make(seed=5), small_splits()
    np.testing.assert_array_equal(setup.train.images, train.images[:60])
    np.testing.assert_array_equal(setup.eval.labels, test.labels[:12])
    held_out = make(val_size=50, max_train_samples=0).eval.images
    np.testing.assert_array_equal(make(val_size=50, seed=5).eval.images, held_out[:12])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 60, "epochs": 1}, "--batch-size 60: must be below the number of training images, 60, with"),
        ({"batch_size": 61}, "--batch-size 61: must be at most the number of training images, 60"),
        ({"val_size": 200}, "--val-size 200: must be below the number of training images, 200"),
        ({"augment_on": "device", "workers": 3}, "--workers 3: must be auto or 0 with --augment-on device"),
        ({"precision": "fp16"}, "--precision fp16: must be "),
        ({"device": "cuda:99"}, "--device cuda:99: "),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(InputError, match=f"^{message}"):
        make(**changes)


def test_processes_need_equal_parts_of_a_batch():
    setup = replace(make(), runtime=runtime_on("cpu", world_size=2))
    with pytest.raises(InputError, match=r"^--batch-size 25: must be a multiple of the 2 processes"):
        setup.with_config(setup.config)
    assert setup.with_config(setup.config.replace(batch_size=32)).steps_per_epoch == 2
    odd = replace(setup, train=setup.train.subset(slice(59)))
    with pytest.raises(InputError, match="the 27 images of the last batch of an epoch of 59 images"):
        odd.with_config(setup.config.replace(batch_size=32))


@pytest.mark.parametrize(
    ("device", "changes", "expected"),
    [
        ("cpu", {}, "cpu"),
        ("cuda", {}, "device"),
        ("cuda", {"workers": 0}, "device"),
        ("cuda", {"workers": 2}, "cpu"),
        ("cuda", {"augment_on": "cpu"}, "cpu"),
        ("cpu", {"augment_on": "device"}, "device"),
        ("mps", {}, "cpu"),
    ],
)
def test_where_images_are_augmented_by_default(device, changes, expected):
    assert _resolve_augment_on(TrainConfig(**changes), runtime_on(device)) == expected


@pytest.mark.parametrize(("augment_on", "kind"), [("cpu", AugmentedBatches), ("device", DeviceAugmentedBatches)])
def test_the_loader_augments_where_it_should(augment_on, kind):
    setup = make(augment_on=augment_on)
    loader = setup.build_loader(epochs=1)
    assert type(loader.dataset) is kind
    images, labels = next(iter(loader))
    assert (images.shape, images.dtype, labels.dtype) == ((25, 32, 32, 3), torch.uint8, torch.int64)
    samples, names = setup.first_batch()
    np.testing.assert_array_equal(samples, images.numpy())
    assert names == [setup.train.classes[label] for label in labels]


def test_memory_is_pinned_for_cuda_only():
    setup = make()
    assert not setup.build_loader(1).pin_memory
    assert replace(setup, runtime=runtime_on("cuda")).build_loader(1).pin_memory


def test_workers_without_sockets_are_an_error_at_once(tmp_path, monkeypatch):
    folder = tmp_path / ("x" * 100)  # the paths of sockets end at 107 bytes
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(InputError, match=r"^--workers 2: must be 0, or TMPDIR .* \(AF_UNIX path too long\)$"):
        make(workers=2)
    assert not list(folder.iterdir())
    assert make(workers=0).workers == 0


def test_other_settings_keep_data_and_device():
    setup = make()
    config = setup.config.replace(batch_size=30, max_lr=0.1)
    changed = setup.with_config(config)
    assert changed == replace(setup, config=config)
    assert changed.train is setup.train
    assert changed.steps_per_epoch == 2


def test_the_environment_is_complete():
    environment = make().environment
    assert environment["device"] == "cpu"
    assert environment["precision"] == best_precision(torch.device("cpu"))
    assert (environment["world_size"], environment["augment_on"]) == (1, "cpu")
    assert environment["hardware"]["threads"] == torch.get_num_threads()
    assert environment["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_the_loader_follows_the_settings():
    setup = make(crop_padding=0, cutout_size=0)
    loader = setup.build_loader(epochs=2)
    assert len(loader) == 6
    batches = list(loader)
    rest = list(setup.build_loader(epochs=2, first_step=4))
    assert [len(labels) for _, labels in batches] == [25, 25, 10] * 2
    assert all(torch.equal(one[0], other[0]) for one, other in zip(batches[4:], rest, strict=True))
    images = {image.numpy().tobytes() for batch, _ in batches for image in batch}
    originals = {image.tobytes() for image in setup.train.images}
    mirrored = {image[:, ::-1].tobytes() for image in setup.train.images}
    assert images <= originals | mirrored  # of the augmentation, the flip alone is on
    assert images & mirrored


def test_settings_of_the_augmentation_reach_it():
    setup = make(flip="alternating", cutout_size=6)
    batches = setup.build_loader(epochs=1).dataset
    steps = batches.transform.transforms
    assert [type(step).__name__ for step in steps] == ["RandomCrop", "CoarseDropout"]
    assert steps[1].hole_height_range == (6, 6)
    assert batches.alternating_flip
    assert make(flip="alternating", augment_on="device").build_loader(epochs=1).dataset.alternating_flip


def test_settings_of_the_optimizer_reach_it():
    setup = make(betas=(0.8, 0.95), weight_decay=0.2, label_smoothing=0.3, epochs=2)
    state = setup.build_state(0.1)
    assert [group["betas"] for group in state.optimizer.param_groups] == [(0.8, 0.95)] * 2
    assert [group["weight_decay"] for group in state.optimizer.param_groups] == [0.2, 0.0]
    assert setup.build_criterion().label_smoothing == 0.3
    lrs = []
    for _ in range(6):
        lrs.append(state.optimizer.param_groups[0]["lr"])
        state.optimizer.step()
        state.scheduler.step() if len(lrs) < 6 else None
    assert lrs == planned_lrs(**setup.schedule(0.1))


def test_settings_of_the_network_reach_it():
    plain = make(dirac_init=False, whitening_init=False).build_model()
    changed = make(logit_scale=0.5).build_model()
    assert (plain.resnet.logit_scale, changed.resnet.logit_scale) == (0.125, 0.5)
    x = torch.randn(1, 64, 8, 8)
    for model, passes in ((plain, False), (changed, True)):
        assert torch.allclose(model.resnet.layer1[0].conv(x)[:, :64], x, atol=1e-6) == passes
    filters = changed.resnet.prep.conv.weight
    assert torch.equal(filters[:27], -filters[27:54])
    assert torch.equal(filters[54:], plain.resnet.prep.conv.weight[54:])


def test_weights_depend_on_the_seed_alone():
    first, again, other = (make(seed=seed).build_model().state_dict() for seed in (0, 0, 1))
    assert same_tensors(first, again)
    assert not same_tensors(first, other)


def test_evaluation_images_are_not_augmented():
    images, labels = make(max_train_samples=0).eval_tensors()
    np.testing.assert_array_equal(images, small_splits()[1].images)
    np.testing.assert_array_equal(labels, small_splits()[1].labels)
