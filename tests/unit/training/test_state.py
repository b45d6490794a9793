import pytest
import torch
from torch import nn

from s10_resnet.training.state import Totals


def test_totals_are_means_over_images_also_with_a_ragged_last_batch(cpu):
    logits, labels = torch.randn(50, 10), torch.randint(0, 10, (50,))
    totals = Totals(cpu)
    for batch, target in zip(logits.split(16), labels.split(16), strict=True):  # 16, 16, 16, 2
        totals.add(nn.functional.cross_entropy(batch, target), batch, target)
    hits = sum(int(row.argmax() == label) for row, label in zip(logits, labels, strict=True))
    assert totals.images == 50
    assert totals.accuracy == hits / 50
    assert totals.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)


def test_totals_go_on_from_where_they_were(cpu):
    logits, labels = torch.randn(50, 10), torch.randint(0, 10, (50,))
    whole, begun, resumed = Totals(cpu), Totals(cpu), Totals(cpu)
    for k, (batch, target) in enumerate(zip(logits.split(16), labels.split(16), strict=True)):
        whole.add(nn.functional.cross_entropy(batch, target), batch, target)
        if k == 2:
            resumed.load_state_dict(begun.state_dict())
        (begun if k < 2 else resumed).add(nn.functional.cross_entropy(batch, target), batch, target)
    assert (resumed.loss, resumed.accuracy, resumed.images, resumed.steps) == (whole.loss, whole.accuracy, 50, 4)


def test_of_shared_targets_the_larger_share_counts(cpu):
    logits, labels = torch.randn(50, 10), torch.randint(0, 10, (50,))
    shares = 0.7 * nn.functional.one_hot(labels, 10) + 0.3 * nn.functional.one_hot((labels + 1) % 10, 10)
    hard, soft = Totals(cpu), Totals(cpu)
    hard.add(torch.tensor(1.0), logits, labels)
    soft.add(torch.tensor(1.0), logits, shares)
    assert soft.accuracy == hard.accuracy


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_the_first_broken_step_is_remembered(cpu, broken):
    totals, logits, labels = Totals(cpu), torch.randn(4, 10), torch.zeros(4, dtype=torch.int64)
    for loss in (1.0, 2.0, broken, 1.0, broken):
        assert totals.failed_step == (3 if totals.steps >= 3 else 0)
        totals.add(torch.tensor(loss), logits, labels)
    assert totals.failed_step == 3


def test_totals_count_the_images_of_all_processes(cpu):
    class Two(type(cpu)):
        def total(self, tensor):
            return tensor.mul_(2)  # the other process has just the same

    totals = Totals(Two(cpu.device, cpu.precision, cpu.scaler, world_size=2))
    totals.add(torch.tensor(1.5), torch.eye(10)[:4], torch.tensor([0, 1, 2, 9]))
    assert (totals.images, totals.loss, totals.accuracy) == (8, 1.5, 0.75)
