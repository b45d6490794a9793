"""The figures in a run folder: which there are, what their files are called and what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from s10_resnet.reporting import plots
from s10_resnet.reporting.formatting import percent, plural, title_suffix
from s10_resnet.reporting.plots import Epoch

GRID_IMAGES = 32
TARGETS = {"cifar10": 0.9}  # accuracy to reach, by data set


def plot_setup(
    folder: Path,
    samples: np.ndarray,
    sample_labels: Sequence[str],
    lrs: Sequence[float],
    steps_per_epoch: int,
    *,
    dataset: str,
) -> None:
    """Plots what is known before the training: ``samples.png`` and ``lr_schedule.png``.

    The samples are augmented training images, uint8 ``[S, 32, 32, 3]``, of which the first 32 are drawn, with the names
    of their classes; ``lrs`` has the learning rate of every step.
    """
    suffix = title_suffix(dataset)
    title = f"Augmented training images of the first epoch{suffix}"
    figure = plots.plot_images(samples[:GRID_IMAGES], sample_labels[:GRID_IMAGES], title=title)
    plots.save(figure, folder / "samples.png")
    figure = plots.plot_lr_schedule(lrs, steps_per_epoch=steps_per_epoch, title=f"Learning rate schedule{suffix}")
    plots.save(figure, folder / "lr_schedule.png")


def plot_results(
    folder: Path,
    history: Sequence[Epoch],
    evaluation: tuple[np.ndarray, np.ndarray, Sequence[str]],
    probabilities: np.ndarray,
    *,
    eval_split: str,
    dataset: str,
) -> None:
    """Plots the results of a training: ``curves.png``, ``confusion.png`` and ``misclassified.png``.

    Args:
        folder: Folder of the run.
        history: The epochs, at least one.
        evaluation: Evaluation images, uint8 ``[N, 32, 32, 3]``, their labels, int64 ``[N]``, and C class names.
        probabilities: Predicted probabilities of these images, float ``[N, C]``.
        eval_split: What the evaluation images are, ``"test"`` or ``"val"``.
        dataset: ``cifar10`` or ``synthetic``.
    """
    images, labels, classes = evaluation
    suffix, target = title_suffix(dataset), TARGETS.get(dataset)
    figure = plots.plot_curves(history, split=eval_split, target=target, title=f"Loss and accuracy{suffix}")
    plots.save(figure, folder / "curves.png")

    matrix = confusion_matrix(labels, probabilities)
    title = f"Confusion matrix of {plural(len(labels), f'{eval_split} image')}{suffix}"
    plots.save(plots.plot_confusion_matrix(matrix, classes, title=title), folder / "confusion.png")

    predicted = probabilities.argmax(1)
    wrong = most_confident_errors(labels, probabilities)[:GRID_IMAGES]
    captions = [f"{classes[predicted[i]]} / {classes[labels[i]]}\n{percent(probabilities[i].max(), 0)}" for i in wrong]
    title = f"Most confident misclassified {eval_split} images: predicted / true class, confidence{suffix}"
    plots.save(plots.plot_images(images[wrong], captions, title=title), folder / "misclassified.png")


def plot_range_test(
    folder: Path,
    lrs: np.ndarray,
    losses: np.ndarray,
    smoothed: np.ndarray,
    *,
    suggestions: Mapping[str, float],
    recommended: str | None,
    dataset: str,
) -> None:
    """Plots a learning rate range test as ``lr_finder.png``; see `plots.plot_lr_range`."""
    title = f"Learning rate range test{title_suffix(dataset)}"
    figure = plots.plot_lr_range(lrs, losses, smoothed, suggestions=suggestions, recommended=recommended, title=title)
    plots.save(figure, folder / "lr_finder.png")


def confusion_matrix(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns int ``[C, C]``: the number of images by true class (row) and predicted class (column)."""
    classes = probabilities.shape[1]
    return np.bincount(labels * classes + probabilities.argmax(1), minlength=classes**2).reshape(classes, classes)


def most_confident_errors(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns the indices of the misclassified images, the largest predicted probability first."""
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")]
