import math

import pytest
import torch

from s10_resnet.evaluation import metrics

CLASSES = ("a", "b", "c", "d")


@pytest.fixture
def judged():
    """Logits and labels of 200 images, a class without images among them."""
    draws = torch.Generator().manual_seed(0)
    return 3 * torch.randn(200, 4, generator=draws), torch.randint(0, 3, (200,), generator=draws)


def softmax(row):
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


def test_against_a_count_by_hand(judged):
    logits, labels = judged
    measured = metrics.compute_metrics(logits, labels, CLASSES)
    pairs = list(zip(logits.tolist(), labels.tolist(), strict=True))
    predicted = [row.index(max(row)) for row, _ in pairs]
    hits = [guess == label for guess, (_, label) in zip(predicted, pairs, strict=True)]
    assert measured["images"] == 200
    assert measured["loss"] == pytest.approx(sum(-math.log(softmax(row)[label]) for row, label in pairs) / 200)
    assert measured["accuracy"] == sum(hits) / 200
    for true in range(4):
        row = [guess for guess, (_, label) in zip(predicted, pairs, strict=True) if label == true]
        assert measured["confusion_matrix"][true] == [row.count(guess) for guess in range(4)]
        share = row.count(true) / len(row) if row else None
        assert measured["per_class"][CLASSES[true]] == {"images": len(row), "accuracy": share}
    assert measured["per_class"]["d"]["accuracy"] is None


def calibration_by_hand(probabilities, labels, bins):
    error = 0.0
    for place in range(bins):
        low, high = place / bins, (place + 1) / bins
        inside = [
            (max(row), row.index(max(row)) == label)
            for row, label in zip(probabilities, labels, strict=True)
            if low < max(row) <= high
        ]
        if inside:
            confidence = sum(value for value, _ in inside) / len(inside)
            accuracy = sum(hit for _, hit in inside) / len(inside)
            error += len(inside) / len(labels) * abs(accuracy - confidence)
    return error


def test_the_calibration_error_is_that_of_its_definition(judged):
    logits, labels = judged
    expected = calibration_by_hand(logits.double().softmax(1).tolist(), labels.tolist(), 15)
    assert metrics.compute_metrics(logits, labels, CLASSES)["expected_calibration_error"] == pytest.approx(expected)


def test_a_confidence_on_the_border_belongs_to_the_bin_below(monkeypatch):
    monkeypatch.setattr(metrics, "CALIBRATION_BINS", 2)
    probabilities = torch.tensor([[0.5, 0.5], [0.75, 0.25]])
    assert metrics.expected_calibration_error(probabilities, torch.tensor([0, 1])) == (0.5 + 0.75) / 2
