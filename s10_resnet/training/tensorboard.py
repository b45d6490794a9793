"""The epochs of a training for TensorBoard, which is an extra; the package's only importer of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from s10_resnet.training.state import EpochRecord
from s10_resnet.utils import extras


class Events:
    """Writes the records of epochs into a folder that ``tensorboard --logdir outputs`` finds.

    Args:
        folder: Where to.
        split: What the evaluation images are called, ``test`` or ``val``.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self.writer = None
        self.written = 0

    def log(self, history: Sequence[EpochRecord]) -> None:
        """Writes those records that are new. What an earlier process wrote of the same run is superseded."""
        if self.writer is None:
            self.writer = require().SummaryWriter(self.folder, purge_step=1)
        for record in history[self.written :]:
            scalars = {
                "loss/train": record.train_loss,
                f"loss/{self.split}": record.eval_loss,
                "accuracy/train": record.train_accuracy,
                f"accuracy/{self.split}": record.eval_accuracy,
                "lr": record.lr,
                "images_per_second": record.images_per_second,
            }
            for tag, value in scalars.items():
                self.writer.add_scalar(tag, value, record.epoch)
        self.written = len(history)
        self.writer.flush()

    def close(self) -> None:
        """Ends the thread that writes."""
        if self.writer is not None:
            self.writer.close()


def require() -> object:
    """The library, or an `InputError` that says what to install."""
    extras.need("tensorboard", "tensorboard", "--tensorboard")
    return extras.need("torch.utils.tensorboard", "tensorboard", "--tensorboard")
