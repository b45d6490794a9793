"""What the logits of labelled images come to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

CALIBRATION_BINS = 15


def measure(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Everything a summary of an evaluation holds.

    Args:
        logits: float ``[N, C]``, N at least 1.
        labels: int64 ``[N]``.
        classes: C names.

    Returns:
        ``images``, ``loss`` (mean cross entropy in nats, without label smoothing), ``accuracy``,
        ``expected_calibration_error``, ``per_class`` (images and accuracy by name; None for a class without images) and
        ``confusion_matrix`` (see `confusion_matrix`). Accuracies and the error are fractions of 1.
    """
    logits = logits.double()
    matrix = confusion_matrix(labels.numpy(), logits.argmax(1).numpy(), len(classes))
    totals = matrix.sum(axis=1).tolist()
    return {
        "images": len(labels),
        "loss": functional.cross_entropy(logits, labels).item(),
        "accuracy": matrix.trace().item() / len(labels),
        "expected_calibration_error": expected_calibration_error(logits.softmax(1), labels),
        "per_class": {
            name: {"images": total, "accuracy": hits / total if total else None}
            for name, total, hits in zip(classes, totals, matrix.diagonal().tolist(), strict=True)
        },
        "confusion_matrix": matrix.tolist(),
    }


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Images of each class (row) that were taken for each class (column), int ``[C, C]``."""
    matrix = np.zeros((classes, classes), int)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = CALIBRATION_BINS) -> float:
    """How far confidence and accuracy are apart, over images of like confidence, a fraction of 1.

    The mean over bins of equal width, weighted by their images (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    Args:
        probabilities: float ``[N, C]``, rows that add up to 1.
        labels: int64 ``[N]``.
        bins: How many.
    """
    confidence, predicted = probabilities.max(1)
    place = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    gap = (predicted == labels).to(confidence) - confidence
    return torch.zeros(bins, dtype=gap.dtype).index_add(0, place, gap).abs().sum().item() / len(labels)
