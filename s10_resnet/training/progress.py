"""Progress of a training: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from tqdm import tqdm

from s10_resnet.training.state import TrainingState
from s10_resnet.utils.console import logger, progress_bar

REFRESH_SECONDS = 0.5  # of the bar: reading the running metrics synchronizes with the device
LINE_SECONDS = 60.0  # between lines within an epoch where there is no terminal
# All but tqdm's rate: the metrics behind it would not fit into 80 columns.
EPOCH_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
ESTIMATE_SECONDS = 10.0  # of training before its total time is estimated


class Progress:
    """A bar over the epochs and one over the images of an epoch; without a terminal, a line now and then.

    Args:
        epochs: Number of epochs of the run.
        images: Number of training images.
        steps_per_epoch: Number of batches in an epoch.
        eval_split: ``test`` or ``val``.
        lines: Whether to log an estimate of the time and a line per epoch; the line per minute is logged regardless.
    """

    def __init__(self, epochs: int, images: int, steps_per_epoch: int, eval_split: str, *, lines: bool = True) -> None:
        self.epochs, self.images, self.steps_per_epoch, self.eval_split = epochs, images, steps_per_epoch, eval_split
        self.lines = lines
        self.run_bar: tqdm | None = None
        self.epoch_bar: tqdm | None = None
        self.estimated = False

    def start(self, state: TrainingState) -> None:
        """Starts the clock and prints the header of the table of epochs."""
        self.started, self.first_step = time.perf_counter(), state.step
        self.last_line = self.started
        done = len(state.history)
        self.run_bar = progress_bar(total=self.epochs, initial=done, desc="run", unit="epoch", leave=True)
        if not self.lines or done == self.epochs:
            return
        logger.info(
            f"{'epoch':>7} {'train loss':>10} {'train acc':>9} {self.eval_split + ' loss':>9} "
            f"{self.eval_split + ' acc':>9} {'lr':>9} {'images/s':>9} {'remaining':>9}"
        )

    def on_step(self, state: TrainingState) -> None:
        """Updates the bar, or logs a line if the last one is old enough."""
        assert self.run_bar is not None
        metrics = state.metrics
        if self.run_bar.disable:
            now = time.perf_counter()
            if self.lines and not self.estimated and now - self.started >= ESTIMATE_SECONDS:
                self.estimated = True
                logger.info(f"estimated time for the remaining epochs: {self._remaining(state)}")
            if now - self.last_line >= LINE_SECONDS:
                self.last_line = now
                logger.info(
                    f"epoch {len(state.history) + 1}, step {metrics.steps} of {self.steps_per_epoch}: "
                    f"loss {metrics.loss:.3f}, accuracy {metrics.accuracy:.1%}, {self._remaining(state)} remaining"
                )
            return
        if self.epoch_bar is None:
            title = f"epoch {len(state.history) + 1}"
            self.epoch_bar = progress_bar(
                total=self.images, desc=title, mininterval=REFRESH_SECONDS, bar_format=EPOCH_BAR
            )
        if self.epoch_bar.update(metrics.images - self.epoch_bar.n):
            self.epoch_bar.set_postfix_str(f"loss {metrics.loss:.3f}, accuracy {metrics.accuracy:.1%}", refresh=False)

    def on_epoch_end(self, state: TrainingState) -> None:
        """Logs the epoch's line of the table."""
        assert self.run_bar is not None
        if self.epoch_bar is not None:
            self.epoch_bar.close()
            self.epoch_bar = None
        self.run_bar.update()
        self.last_line = time.perf_counter()
        self.estimated = True  # the line below has it
        if not self.lines:
            return
        metrics = state.history[-1]
        logger.info(
            f"{f'{metrics.epoch}/{self.epochs}':>7} {_loss(metrics.train_loss):>10} {metrics.train_accuracy:>9.2%} "
            f"{_loss(metrics.eval_loss):>9} {metrics.eval_accuracy:>9.2%} {metrics.lr:>9.2e} "
            f"{metrics.images_per_second:>9,.0f} {self._remaining(state):>9}"
        )

    def close(self) -> None:
        """Removes the bars."""
        for bar in (self.epoch_bar, self.run_bar):
            if bar is not None:
                bar.close()
        self.epoch_bar = None

    def _remaining(self, state: TrainingState) -> str:
        elapsed = time.perf_counter() - self.started
        steps = max(1, state.step - self.first_step)
        return tqdm.format_interval(elapsed / steps * (self.epochs * self.steps_per_epoch - state.step))


def _loss(value: float) -> str:
    return f"{value:.4f}" if value < 10_000 else f"{value:.2e}"
