import math

import numpy as np
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
    measured = metrics.measure(logits, labels, CLASSES)
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


@pytest.mark.parametrize("bins", [1, 2, 15])
def test_the_calibration_error_is_that_of_its_definition(judged, bins):
    logits, labels = judged
    probabilities = logits.double().softmax(1)
    expected = calibration_by_hand(probabilities.tolist(), labels.tolist(), bins)
    assert metrics.expected_calibration_error(probabilities, labels, bins) == pytest.approx(expected)
    assert metrics.measure(logits, labels, CLASSES)["expected_calibration_error"] == pytest.approx(
        calibration_by_hand(probabilities.tolist(), labels.tolist(), 15)
    )


def test_a_confidence_on_the_border_belongs_to_the_bin_below():
    probabilities = torch.tensor([[0.5, 0.5], [0.75, 0.25]])
    assert metrics.expected_calibration_error(probabilities, torch.tensor([0, 1]), bins=2) == (0.5 + 0.75) / 2


def test_calibration_at_its_ends():
    sure = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert metrics.expected_calibration_error(sure, torch.tensor([0, 0])) == 0
    assert metrics.expected_calibration_error(sure, torch.tensor([1, 1])) == 1
    half = torch.full((2, 2), 0.5)
    assert metrics.expected_calibration_error(half, torch.tensor([0, 1])) == 0


def test_the_matrix_has_the_true_class_as_its_row():
    matrix = metrics.confusion_matrix(np.array([0, 0, 2]), np.array([0, 1, 2]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
