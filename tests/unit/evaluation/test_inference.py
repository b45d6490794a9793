import copy

import pytest
import torch
from torch import nn

from s10_resnet.evaluation import inference
from s10_resnet.evaluation.inference import evaluate, predict_logits
from s10_resnet.utils.runtime import init_runtime
from tests.runs import small_network


@pytest.fixture
def network(split):
    network = small_network((0.4, 0.5, 0.6), (0.2, 0.3, 0.25), num_classes=10)
    network(torch.from_numpy(split.images))  # in training mode: moves the running statistics
    return network


def test_logits_equal_those_of_each_image_alone(network, split, cpu, monkeypatch):
    monkeypatch.setattr(inference, "BATCH_SIZE", 16)
    images = torch.from_numpy(split.images)
    logits = predict_logits(network.train(), images, cpu)
    assert not network.training
    with torch.no_grad():
        expected = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(logits, expected)


def test_logits_are_fp32_in_any_precision(network, split):
    images = torch.from_numpy(split.images)
    low, full = (predict_logits(network, images, init_runtime("cpu", name)) for name in ("bf16", "fp32"))
    assert low.dtype == torch.float32
    assert not torch.equal(low, full)
    assert torch.allclose(low, full, atol=0.05)


def test_a_batch_has_a_thousand_images(cpu):
    sizes = []

    class Spy(nn.Module):
        def forward(self, images):
            sizes.append(len(images))
            return images.new_zeros(len(images), 2)

    predict_logits(Spy(), torch.zeros(2100, 1, 1, 3, dtype=torch.uint8), cpu)
    assert sizes == [1000, 1000, 100]


def test_evaluation_leaves_the_weights_as_they_are(network, split, cpu):
    before = copy.deepcopy(network.state_dict())
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    loss, accuracy, logits = evaluate(network.train(), images, labels, nn.CrossEntropyLoss(), cpu)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with torch.no_grad():
        expected = network.eval()(images)
    torch.testing.assert_close(logits, expected)
    assert loss == pytest.approx(nn.functional.cross_entropy(expected, labels).item(), rel=1e-5)
    assert accuracy == (expected.argmax(1) == labels).double().mean().item()
