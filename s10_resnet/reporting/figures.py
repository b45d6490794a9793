"""The figures in a run folder: which there are, what their files are called and what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from s10_resnet.data.dataset import Split
from s10_resnet.reporting import plots
from s10_resnet.reporting.formatting import percent, plural, title_suffix
from s10_resnet.reporting.plots import Epoch

GRID_IMAGES = 32
TARGETS = {"cifar10": 0.9}  # accuracy to reach, by data set


@dataclass(frozen=True)
class RunData:
    """What the figures and the report of a run are made of."""

    summary: Mapping[str, Any]  # the content of summary.json
    config: Mapping[str, Any]  # the content of config.json
    history: Sequence[Epoch]  # at least one
    lrs: Sequence[float]  # of every step
    steps_per_epoch: int
    samples: np.ndarray  # augmented training images, uint8 [S, 32, 32, 3]
    sample_labels: Sequence[str]  # the names of their classes
    eval: Split
    probabilities: np.ndarray  # predicted for the evaluation images, float [N, C]

    @cached_property
    def predicted(self) -> np.ndarray:
        """The predicted labels of the evaluation images, int64 ``[N]``."""
        return self.probabilities.argmax(1)

    @cached_property
    def confusion_matrix(self) -> np.ndarray:
        """The number of images by true class (row) and predicted class (column), int ``[C, C]``."""
        count = len(self.eval.classes)
        return np.bincount(self.eval.labels * count + self.predicted, minlength=count**2).reshape(count, count)

    @cached_property
    def errors(self) -> np.ndarray:
        """The indices of the misclassified images, the largest predicted probability first."""
        wrong = np.flatnonzero(self.predicted != self.eval.labels)
        return wrong[np.argsort(-self.probabilities[wrong].max(1), kind="stable")]


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


def plot_results(folder: Path, run: RunData) -> None:
    """Plots the results of a training: ``curves.png``, ``confusion.png`` and ``misclassified.png``."""
    dataset, split = run.summary["dataset"], run.summary["eval_split"]
    suffix = title_suffix(dataset)
    title = f"Loss and accuracy{suffix}"
    figure = plots.plot_curves(run.history, split=split, target=TARGETS.get(dataset), title=title)
    plots.save(figure, folder / "curves.png")

    images, labels, classes = run.eval
    title = f"Confusion matrix of {plural(len(labels), f'{split} image')}{suffix}"
    plots.save(plots.plot_confusion_matrix(run.confusion_matrix, classes, title=title), folder / "confusion.png")

    wrong = run.errors[:GRID_IMAGES]
    captions = [
        f"{classes[run.predicted[i]]} / {classes[labels[i]]}\n{percent(run.probabilities[i].max(), 0)}" for i in wrong
    ]
    title = f"Most confident misclassified {split} images: predicted / true class, confidence{suffix}"
    plots.save(plots.plot_images(images[wrong], captions, title=title), folder / "misclassified.png")
