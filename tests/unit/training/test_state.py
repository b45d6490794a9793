from dataclasses import fields

import pytest
import torch
from torch import nn

from s10_resnet.training.state import EpochMetrics, RunningMetrics


def update_in_batches(metrics, logits, labels):
    for batch, target in zip(logits.split(16), labels.split(16), strict=True):  # of 50 images: 16, 16, 16, 2
        metrics.update(nn.functional.cross_entropy(batch, target), batch, target)


def test_metrics_are_means_over_images_also_with_a_smaller_last_batch(cpu):
    logits, labels = torch.randn(50, 10), torch.randint(0, 10, (50,))
    metrics = RunningMetrics(cpu)
    update_in_batches(metrics, logits, labels)
    assert (metrics.images, metrics.steps) == (50, 4)
    assert metrics.accuracy == sum(int(row.argmax() == label) for row, label in zip(logits, labels, strict=True)) / 50
    assert metrics.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)


def test_metrics_continue_from_a_saved_state(cpu):
    logits, labels = torch.randn(66, 10), torch.randint(0, 10, (66,))
    whole, first, second = RunningMetrics(cpu), RunningMetrics(cpu), RunningMetrics(cpu)
    update_in_batches(whole, logits, labels)
    update_in_batches(first, logits[:32], labels[:32])
    first.lr, first.seconds = 0.25, 1.5
    second.load_state_dict(first.state_dict())
    assert (second.lr, second.seconds) == (0.25, 1.5)
    update_in_batches(second, logits[32:], labels[32:])
    assert (second.loss, second.accuracy) == (whole.loss, whole.accuracy)
    assert (second.images, second.steps) == (66, 5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_first_failed_step_is_remembered(cpu, bad):
    metrics, logits, labels = RunningMetrics(cpu), torch.randn(4, 10), torch.zeros(4, dtype=torch.int64)
    for step, loss in enumerate((1.0, 2.0, bad, 1.0, bad), 1):
        metrics.update(torch.tensor(loss), logits, labels)
        assert metrics.failed == (3 if step >= 3 else 0)


def test_metrics_are_those_of_the_images_of_all_processes(cpu):
    class Two(type(cpu)):
        def all_reduce_sum(self, tensor):
            return tensor.mul_(2)  # the other process has the same

    metrics = RunningMetrics(Two(cpu.device, cpu.precision, world_size=2))
    metrics.update(torch.tensor(1.5), torch.eye(10)[:4], torch.tensor([0, 1, 2, 9]))
    assert (metrics.images, metrics.loss, metrics.accuracy) == (8, 1.5, 0.75)


def test_the_metrics_of_an_epoch_are_the_columns_of_a_history():
    assert [field.name for field in fields(EpochMetrics)] == [
        "epoch",
        "train_loss",
        "train_accuracy",
        "eval_loss",
        "eval_accuracy",
        "lr",
        "train_seconds",
        "eval_seconds",
        "images_per_second",
    ]
