"""Metrics of logits and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

CALIBRATION_BINS = 15


def compute_metrics(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Computes all metrics of an evaluation.

    Args:
        logits: float ``[N, C]``, N at least 1.
        labels: int64 ``[N]``.
        classes: C names.

    Returns:
        ``images``, ``loss`` (mean cross entropy in nats, without label smoothing), ``accuracy``,
        ``expected_calibration_error``, ``per_class`` (number of images and accuracy by class name; None for a class
        without images) and ``confusion_matrix`` (number of images by true class, the row, and predicted class).
        Accuracies and the calibration error are fractions of 1.
    """
    logits = logits.double()
    matrix = np.zeros((len(classes), len(classes)), int)
    np.add.at(matrix, (labels.numpy(), logits.argmax(1).numpy()), 1)
    totals = matrix.sum(axis=1).tolist()
    return {
        "images": len(labels),
        "loss": F.cross_entropy(logits, labels).item(),
        "accuracy": matrix.trace().item() / len(labels),
        "expected_calibration_error": expected_calibration_error(logits.softmax(1), labels),
        "per_class": {
            name: {"images": total, "accuracy": correct / total if total else None}
            for name, total, correct in zip(classes, totals, matrix.diagonal().tolist(), strict=True)
        },
        "confusion_matrix": matrix.tolist(),
    }


def expected_calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Returns the expected calibration error (Guo et al. 2017, https://arxiv.org/abs/1706.04599), a fraction of 1.

    It is the mean difference of confidence and accuracy over 15 bins of equal width, weighted by their sizes.

    Args:
        probabilities: float ``[N, C]``, rows that sum to 1.
        labels: int64 ``[N]``.
    """
    confidence, predicted = probabilities.max(1)
    indices = (confidence * CALIBRATION_BINS).ceil().long().sub(1).clamp(0, CALIBRATION_BINS - 1)
    gap = (predicted == labels).to(confidence) - confidence
    return torch.zeros(CALIBRATION_BINS, dtype=gap.dtype).index_add(0, indices, gap).abs().sum().item() / len(labels)
