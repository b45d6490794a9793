import copy
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from s10_resnet.benchmark import baseline
from s10_resnet.benchmark.baseline import ImageDataset
from s10_resnet.data import dataset
from s10_resnet.data.dataset import Split
from s10_resnet.data.transforms import MEAN, STD

CPU = torch.device("cpu")


@pytest.fixture
def training():
    return baseline.create_training(CPU, max_lr=1e-2, total_steps=10)


@pytest.fixture
def small_training(monkeypatch):
    monkeypatch.setattr(baseline, "ResNet9", lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)))


@pytest.fixture
def batch(few_images):
    return next(iter(DataLoader(ImageDataset(few_images, train=False), 8)))


def test_images_are_normalized(few_images, batch):
    images, labels = batch
    expected = (few_images.images[:8] / 255 - MEAN) / STD
    assert (images.dtype, images.is_contiguous()) == (torch.float32, True)
    assert np.allclose(images.permute(0, 2, 3, 1), expected, atol=1e-5)
    assert labels.tolist() == few_images.labels[:8].tolist()
    assert len(ImageDataset(few_images, train=False)) == 60


def test_images_are_padded_augmented_and_normalized():
    steps = baseline.create_transform(train=True).to_dict()["transform"]["transforms"]
    assert [step["__class_fullname__"] for step in steps] == [
        "Pad", "RandomCrop", "HorizontalFlip", "CoarseDropout", "Normalize", "ToTensorV2"
    ]  # fmt: skip
    assert steps[0]["padding"] == 4


def test_a_step_is_one_of_plain_adam(training, batch):
    model, _, scheduler = training
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e3)  # of an earlier step
    before = copy.deepcopy(model)
    before.zero_grad()
    lr = scheduler.get_last_lr()[0]
    (given,) = baseline.train_steps(training, [batch], CPU)
    loss = nn.functional.cross_entropy(before(batch[0]), batch[1])
    loss.backward()
    torch.optim.Adam(before.parameters(), lr=lr, weight_decay=1e-4).step()
    assert given == pytest.approx(loss.item())
    for parameter, expected in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.allclose(parameter, expected, atol=1e-6)
    assert scheduler.get_last_lr()[0] > lr


def test_accuracy(training, few_images):
    model = training[0].eval()
    batches = list(DataLoader(ImageDataset(few_images, train=False), 20))
    pairs = [pair for batch in batches for pair in zip(*batch, strict=True)]
    expected = np.mean([model(image[None]).argmax().item() == label.item() for image, label in pairs])
    model.train()
    assert baseline.evaluate(model, batches, CPU) == pytest.approx(expected)


def flags(*more):
    return ["--dataset", "synthetic", "--max-train-samples", "30", "--batch-size", "10", "--device", "cpu", *more]


def test_a_training_prints_a_line_per_epoch(few_images, small_training, monkeypatch, capsys):
    monkeypatch.setattr(dataset, "load_synthetic", lambda: (few_images, few_images))
    baseline.main(flags("--epochs", "2"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines, 1):
        assert re.fullmatch(rf"epoch {number}: loss \d+\.\d{{4}}, accuracy \d+\.\d\d%, [\d,]+ images/s", line)


def test_training_images_are_shuffled_and_augmented(few_images, small_training, monkeypatch):
    one_image = Split(np.repeat(few_images.images[:1], 60, 0), np.arange(60) % 10, few_images.classes)
    monkeypatch.setattr(dataset, "load_synthetic", lambda: (one_image, one_image))
    batches = []
    monkeypatch.setattr(baseline, "train_steps", lambda training, loader, device: batches.extend(loader) or [0.0])
    baseline.main(flags("--epochs", "1"))
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert labels.tolist() != sorted(labels.tolist()) == sorted(list(range(10)) * 3)
    assert len(images.flatten(1).unique(dim=0)) > 20


def test_each_stage_does_its_work(few_images, small_training, monkeypatch):
    monkeypatch.setattr(baseline, "PIPELINE_IMAGES", 70)
    loaded, sizes, get, steps = [], [], ImageDataset.__getitem__, baseline.train_steps
    monkeypatch.setattr(ImageDataset, "__getitem__", lambda self, i: loaded.append(i) or get(self, i))

    def noted(training, batches, device):
        return steps(training, (sizes.append(len(batch[1])) or batch for batch in batches), device)

    monkeypatch.setattr(baseline, "train_steps", noted)
    loader = DataLoader(ImageDataset(few_images, train=True), 25, shuffle=True)
    stages = baseline.time_stages(iter(["step", "epoch", "pipeline"]), loader, CPU, 1e-3)
    assert next(stages) > 0
    assert sizes == [25, 25]  # as many as an epoch has full batches
    assert loaded == list(range(25))  # the batch is on the device already
    loaded.clear(), sizes.clear()
    assert next(stages) > 0
    assert sizes == [25, 25, 10]
    assert sorted(loaded) == list(range(60))
    loaded.clear(), sizes.clear()
    threads = torch.get_num_threads()
    assert next(stages) > 0
    assert loaded == list(range(25)) * 3  # the fewest batches that come to 70 images
    assert sizes == []
    assert torch.get_num_threads() == threads
