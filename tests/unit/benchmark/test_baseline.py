import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

from s10_resnet.benchmark import baseline as textbook
from s10_resnet.data import dataset as data
from s10_resnet.data.dataset import Split
from s10_resnet.data.transforms import MEAN, STD, train_transform


@pytest.fixture
def parts():
    return textbook.build(torch.device("cpu"), max_lr=1e-2, total_steps=10)


@pytest.fixture
def batch(split):
    return next(iter(textbook.loader(split, 8, 0, train=False)))


def test_pictures_are_those_of_torchvision(split):
    from torchvision.datasets import CIFAR10

    usual = CIFAR10.__new__(CIFAR10)  # without its files
    usual.data, usual.targets, usual.target_transform = split.images, split.labels.tolist(), None
    transform = textbook.transform(train=False)
    usual.transform = lambda picture: transform(image=np.array(picture))["image"]
    pictures = textbook.Pictures(split, train=False)
    assert len(pictures) == 50
    for given, expected in zip((pictures[i] for i in range(50)), (usual[i] for i in range(50)), strict=True):
        assert torch.equal(given[0], expected[0])
        assert given[1] == expected[1]
        assert type(given[1]) is int


def test_pictures_are_normalised(split, batch):
    images, labels = batch
    expected = (split.images[:8] / 255 - MEAN) / STD
    assert (images.dtype, images.is_contiguous()) == (torch.float32, True)
    assert np.allclose(images.permute(0, 2, 3, 1), expected, atol=1e-5)
    assert labels.tolist() == split.labels[:8].tolist()


def test_the_augmentation_is_that_of_the_package():
    usual = textbook.transform(train=True).to_dict()["transform"]["transforms"]
    ours = train_transform(crop=True, flip=True, cutout=8).to_dict()["transform"]["transforms"]
    assert usual[1:-2] == ours
    assert [step["__class_fullname__"] for step in (usual[0], *usual[-2:])] == ["Pad", "Normalize", "ToTensorV2"]
    assert usual[0]["padding"] == 4


def test_training_images_are_shuffled_and_augmented(split):
    one = Split(np.repeat(split.images[:1], 50, 0), np.arange(50), split.classes)
    ((images, labels),) = textbook.loader(one, 50, 0, train=True)
    assert labels.tolist() != sorted(labels.tolist()) == list(range(50))
    assert len(images.flatten(1).unique(dim=0)) > 40


def test_a_step_is_one_of_plain_adam(parts, batch):
    network, _, scheduler = parts
    before = copy.deepcopy(network)
    lr = scheduler.get_last_lr()[0]
    (given,) = textbook.train_steps(parts, [batch], torch.device("cpu"))
    loss = nn.functional.cross_entropy(before(batch[0]), batch[1])
    loss.backward()
    torch.optim.Adam(before.parameters(), lr=lr, weight_decay=1e-4).step()
    assert given == pytest.approx(loss.item())
    for mine, expected in zip(network.parameters(), before.parameters(), strict=True):
        assert torch.allclose(mine, expected, atol=1e-6)
    assert scheduler.get_last_lr()[0] > lr


def test_each_step_has_a_gradient_of_its_own(parts, batch):
    for parameter in parts[0].parameters():
        parameter.grad = torch.full_like(parameter, 1e3)
    list(textbook.train_steps(parts, [batch], torch.device("cpu")))
    assert max(parameter.grad.abs().max() for parameter in parts[0].parameters()) < 500


def test_accuracy(parts, split):
    network = parts[0].eval()
    batches = list(textbook.loader(split, 20, 0, train=False))
    pairs = [pair for batch in batches for pair in zip(*batch, strict=True)]
    expected = np.mean([network(image[None]).argmax().item() == label.item() for image, label in pairs])
    network.train()
    assert textbook.evaluate(network, batches, torch.device("cpu")) == pytest.approx(expected)


def test_a_run(split, monkeypatch, capsys):
    monkeypatch.setattr(data, "load_synthetic", lambda: (split, split))
    textbook.main(["--dataset", "synthetic", "--epochs", "2", "--limit", "20", "--batch-size", "10", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines, 1):
        assert re.fullmatch(rf"epoch {number}: loss \d+\.\d{{4}}, accuracy \d+\.\d\d%, [\d,]+ images/s", line)
