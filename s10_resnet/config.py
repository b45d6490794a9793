"""Every setting of the package in one flat, frozen dataclass that checks itself."""

from __future__ import annotations

import json
import os
import re
from dataclasses import Field, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from s10_resnet import knobs
from s10_resnet.errors import InputError


def _data_dir() -> Path:
    return Path(os.environ.get("S10_DATA_DIR", "data"))


@dataclass(frozen=True)
class Config:
    """One run's settings. A field ``batch_size`` is the flag ``--batch-size``.

    Raises:
        InputError: When a value is out of range; the message names flag, value and what is allowed.
    """

    epochs: int = knobs.whole(24, "passes over the training images", low=1, high=10_000)
    batch_size: int = knobs.whole(512, "images in a step", low=1)
    max_lr: float | str = knobs.or_auto(
        knobs.learning_rate(5e-3, "peak learning rate; auto runs the range test first"), 5e-3
    )
    weight_decay: float = knobs.number(
        0.3,
        "decoupled weight decay of the convolutions and the linear layer",
        "a number of at least 0",
        lambda v: v >= 0,
    )
    ema_decay: float = knobs.number(
        0.0,
        "decay a step of the moving average of the weights that is evaluated and saved; 0: the weights themselves are",
        "a number of at least 0 and below 1",
        lambda v: 0 <= v < 1,
    )
    label_smoothing: float = knobs.number(
        0.1, "share of the target spread over all classes", "a number of at least 0 and below 1", lambda v: 0 <= v < 1
    )
    optimizer_betas: tuple[float, float] = knobs.betas((0.9, 0.99), "Adam's two decay rates")
    pct_start: float = knobs.number(
        0.2, "share of the steps before the peak learning rate", "a number from 0 to 1", lambda v: 0 <= v <= 1
    )
    anneal: str = knobs.choice("linear", "shape of the rise and the fall of the learning rate", "linear", "cos")
    div_factor: float = knobs.number(
        25.0, "peak learning rate over the first one", "a number of at least 1", lambda v: v >= 1
    )
    final_div_factor: float = knobs.number(
        1e4, "first learning rate over the last one", "a number of at least 1", lambda v: v >= 1
    )
    logit_scale: float = knobs.number(0.125, "constant factor on the logits", "a number above 0", lambda v: v > 0)
    crop_padding: int = knobs.whole(
        4, "pixels of reflection around an image before the random crop; 0: no crop", low=0, high=16
    )
    flip: bool = knobs.switch(True, "mirror half of the images")
    cutout: int = knobs.whole(8, "side of the square filled with the mean pixel; 0: no cutout", low=0, high=32)
    seed: int = knobs.whole(0, "seed of weights, order and augmentation", low=0, high=2**32 - 1)
    dataset: str = knobs.choice(
        "cifar10",
        "what to train on; auto: CIFAR-10 if it is there or can be had, else the built-in stand-in",
        "cifar10",
        "synthetic",
        "auto",
    )
    data_dir: Path = knobs.folder(
        _data_dir,
        "folder that holds or gets cifar-10-batches-py; the default can be set in S10_DATA_DIR",
    )
    val_size: int = knobs.whole(0, "training images held out and evaluated on in place of the test images", low=0)
    limit: int = knobs.whole(0, "use the first N training and N/5 test images; 0: all", low=10, zero=True)
    device: str = knobs.word(
        "auto",
        "where to train",
        "auto, cpu, cuda, cuda:N or mps",
        lambda text: re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,4})?", text),
    )
    precision: str = knobs.choice("auto", "number format of the forward pass", "auto", "fp32", "bf16", "fp16")
    deterministic: bool = knobs.switch(False, "the same bits on every run on CUDA, too, which is slower there")
    workers: int | str = knobs.or_auto(knobs.whole(0, "augmentation processes", low=0, high=256), "auto")
    finder_start_lr: float = knobs.learning_rate(1e-6, "first learning rate of the range test")
    finder_end_lr: float = knobs.learning_rate(1.0, "last learning rate of the range test")
    finder_steps: int = knobs.whole(100, "steps of the range test", low=20, high=100_000)
    checkpoint_every_minutes: float = knobs.number(
        5.0,
        "time between checkpoints within an epoch; every epoch ends with one",
        "a number above 0",
        lambda v: v > 0,
    )
    output_dir: Path = knobs.folder(Path("outputs"), "folder of the run folders")
    name: str = knobs.word(
        "",
        "the run's folder below --output-dir; by default the command, date and time",
        "up to 100 letters, digits and . _ -, not starting with a dot or a dash",
        lambda text: text == "" or re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", text),
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not item.metadata["knob"].accepts(value):
                raise bad_value(item, value)
        if self.finder_start_lr >= self.finder_end_lr:
            raise InputError(
                f"--finder-start-lr {self.finder_start_lr}: must be below --finder-end-lr {self.finder_end_lr}"
            )

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values; paths become strings."""
        return json.loads(json.dumps(asdict(self), default=str))

    @classmethod
    def from_json(cls, content: Any) -> Config:
        """The config that ``to_json`` made this of.

        Raises:
            InputError: For anything but an object of exactly these fields with allowed values.
        """
        names = {item.name for item in fields(cls)}
        if not isinstance(content, dict):
            raise InputError("the settings must be a JSON object")
        if content.keys() != names:
            strange = ", ".join(sorted(map(str, content.keys() ^ names)))
            raise InputError(f"the settings of another version of this package, which differs in: {strange}")
        return cls(**{item.name: item.metadata["knob"].revive(content[item.name]) for item in fields(cls)})


def flag(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def bad_value(item: Field, value: Any) -> InputError:
    """What to raise for a value that a field does not take."""
    shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return InputError(f"{flag(item.name)} {shown}: must be {item.metadata['knob'].allowed}")
