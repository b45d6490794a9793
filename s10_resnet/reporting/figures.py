"""The pictures in a run folder: which there are, what they are called and what they show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from s10_resnet.data.dataset import Split
from s10_resnet.evaluation import metrics
from s10_resnet.reporting import plots
from s10_resnet.training.lr_finder import LRCurve, Suggestion, smooth
from s10_resnet.training.state import EpochRecord

GRID_IMAGES = 32
LAST_OF_PLAN = "lr_schedule.png"  # with it `draw_plan` is done


def draw_plan(
    folder: Path, images: np.ndarray, names: Sequence[str], lrs: Sequence[float], steps_per_epoch: int, note: str
) -> None:
    """What can be drawn before the training: ``samples.png`` and ``lr_schedule.png``.

    Args:
        folder: Where to.
        images: Augmented training images, uint8 ``[N, 32, 32, 3]``.
        names: Their classes.
        lrs: Learning rate of every step.
        steps_per_epoch: Steps in an epoch.
        note: Added to every title.
    """
    samples = plots.image_grid(
        images[:GRID_IMAGES], names[:GRID_IMAGES], title=f"Training images as augmented in the first epoch{note}"
    )
    plots.save(samples, folder / "samples.png")
    schedule = plots.lr_schedule(lrs, steps_per_epoch=steps_per_epoch, title=f"Learning rate{note}")
    plots.save(schedule, folder / LAST_OF_PLAN)


def draw_results(
    folder: Path,
    history: Sequence[EpochRecord],
    evaluation: Split,
    split: str,
    probabilities: np.ndarray,
    note: str,
) -> None:
    """What a training came to: ``curves.png``, ``confusion.png`` and ``mistakes.png``.

    Args:
        folder: Where to.
        history: The epochs, at least one.
        evaluation: The evaluation images with their labels.
        split: What they are called, ``test`` or ``val``.
        probabilities: The network's, float ``[N, C]``.
        note: Added to every title.
    """
    plots.save(plots.curves(history, split=split, title=f"Loss and accuracy{note}"), folder / "curves.png")

    images, labels, classes = evaluation
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    matrix = metrics.confusion_matrix(labels, predicted, len(classes))
    confusion = plots.confusion(matrix, classes, title=f"Predictions on the {len(labels):,} {split} images{note}")
    plots.save(confusion, folder / "confusion.png")

    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:GRID_IMAGES]
    captions = [f"{classes[predicted[i]]} / {classes[labels[i]]}\n{100 * confidence[i]:.0f} %" for i in wrong]
    mistakes = plots.image_grid(
        images[wrong], captions, title=f"Most confident mistakes: predicted / true, confidence{note}"
    )
    plots.save(mistakes, folder / "mistakes.png")


def draw_range_test(folder: Path, curve: LRCurve, found: Suggestion, picks: Sequence[float], note: str) -> None:
    """The learning-rate range test with its suggestions: ``lr_finder.png``.

    Args:
        folder: Where to.
        curve: Of the test, or the average of several.
        found: What the rules make of it.
        picks: What each of several tests recommends by itself.
        note: Added to the title.
    """
    figure = plots.lr_range(
        curve.lrs,
        curve.losses,
        smooth(curve),
        suggestions=found.suggestions,
        recommended=found.recommended,
        picks=picks,
        title=f"Learning-rate range test{note}",
    )
    plots.save(figure, folder / "lr_finder.png")
