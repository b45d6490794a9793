"""What a person sees of a run: bars on a terminal, plain lines in a log file. The only importer of tqdm."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence

from tqdm import tqdm

from s10_resnet.training.state import EpochRecord, Totals

REFRESH_SECONDS = 0.5  # reading the totals waits for the device


def say(text: str = "") -> None:
    """Prints a line at once, above the bars if there are any."""
    with tqdm.external_write_mode():
        print(text, flush=True)


def warn(text: str) -> None:
    """Prints a warning in a frame on stderr."""
    frame = "!" * 88
    with tqdm.external_write_mode(file=sys.stderr):
        print(f"{frame}\nWARNING: {text}\n{frame}", file=sys.stderr, flush=True)


def complain(text: str) -> None:
    """Prints a line on stderr, above the bars if there are any."""
    with tqdm.external_write_mode(file=sys.stderr):
        print(text, file=sys.stderr, flush=True)


class Progress:
    """A bar over the epochs and one over the images of the present epoch; without a terminal both do nothing."""

    def __init__(self, epochs: int, images: int, split: str, done: int = 0) -> None:
        self.epochs, self.images, self.split, self.done = epochs, images, split, done
        self.start = time.perf_counter()
        self.run = tqdm(total=epochs, initial=done, desc="run", unit="epoch", disable=None, dynamic_ncols=True)

    def watch(self, steps: Iterator[Totals]) -> Iterator[Totals]:
        """Shows an epoch's running totals, reading them from the device only when the bar is drawn."""
        description = f"epoch {self.run.n + 1}"
        with _image_bar(self.images, description) as bar:
            for totals in steps:
                if bar.update(totals.images - bar.n):
                    bar.set_postfix_str(
                        f"loss {totals.loss:.3f}, accuracy {totals.accuracy:.1%}, lr {totals.lr:.2e}", refresh=False
                    )
                yield totals

    def advance(self) -> None:
        """Counts an epoch."""
        self.run.update()

    def report(self, record: EpochRecord) -> None:
        """Counts an epoch and prints its line."""
        self.advance()
        elapsed = time.perf_counter() - self.start
        left = elapsed / (record.epoch - self.done) * (self.epochs - record.epoch)
        say(
            f"epoch {record.epoch:>{len(str(self.epochs))}}/{self.epochs}"
            f"  train loss {record.train_loss:.4f} accuracy {record.train_accuracy:7.2%}"
            f"  {self.split} loss {record.eval_loss:.4f} accuracy {record.eval_accuracy:7.2%}"
            f"  lr {record.lr:.2e}  {record.images_per_second:,.0f} images/s"
            f"  {tqdm.format_interval(elapsed)} gone, {tqdm.format_interval(left)} left"
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.run.close()


def bar(items: Iterable, total: int, description: str, unit: str) -> Iterator:
    """The items, with a bar over them."""
    return tqdm(items, total=total, desc=description, unit=unit, disable=None, leave=False, dynamic_ncols=True)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def _image_bar(images: int, description: str) -> tqdm:
    return tqdm(
        total=images,
        desc=description,
        unit=" images",
        mininterval=REFRESH_SECONDS,
        leave=False,
        disable=None,
        dynamic_ncols=True,
    )
