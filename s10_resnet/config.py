"""Every setting of a training in one flat, frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from s10_resnet import knobs
from s10_resnet.errors import InputError
from s10_resnet.settings import Settings

SEEDS = 2**32


@dataclass(frozen=True)
class Config(Settings):
    """One run's settings."""

    SECTIONS: ClassVar[dict[str, str]] = {
        "epochs": "training",
        "crop_padding": "augmentation",
        "seed": "data and randomness",
        "device": "machine",
        "finder_start_lr": "range test",
        "checkpoint_every_minutes": "output",
    }

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
    peak_beta1: float = knobs.number(
        0.0,
        "Adam's first decay rate at the peak learning rate, to which it falls and from which it rises; 0: it stays",
        "a number of at least 0 and below 1",
        lambda v: 0 <= v < 1,
    )
    bias_lr_factor: float = knobs.number(
        1.0, "learning rate of BatchNorm's biases over that of all else", "a number above 0", lambda v: v > 0
    )
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
    norm_momentum: float = knobs.number(
        0.1,
        "share of a batch in the running statistics of BatchNorm",
        "a number above 0 and at most 1",
        lambda v: 0 < v <= 1,
    )
    dirac_init: bool = knobs.switch(False, "let every convolution but the first begin by passing its input on")
    whitening_init: bool = knobs.switch(False, "let the first convolution begin by whitening the patches it sees")
    crop_padding: int = knobs.whole(
        4, "pixels of reflection around an image before the random crop; 0: no crop", low=0, high=16
    )
    flip: str = knobs.choice(
        "random",
        "mirror half of the images, or every image in every second epoch, or none",
        "random",
        "alternating",
        "none",
    )
    cutout: int = knobs.whole(8, "side of the square filled with the mean pixel; 0: no cutout", low=0, high=32)
    cutout_probability: float = knobs.number(
        1.0, "share of the images that get one", "a number from 0 to 1", lambda v: 0 <= v <= 1
    )
    rotation: float = knobs.number(
        0.0, "largest rotation in degrees, either way", "a number from 0 to 180", lambda v: 0 <= v <= 180
    )
    color_jitter: float = knobs.number(
        0.0, "largest change of brightness, contrast and saturation", "a number from 0 to 1", lambda v: 0 <= v <= 1
    )
    mix: str = knobs.choice(
        "none", "mix each image with another: blend the two, or paste a rectangle", *("none", "mixup", "cutmix")
    )
    mix_alpha: float = knobs.number(
        0.2, "how evenly: shares follow Beta(alpha, alpha)", "a number above 0 and at most 100", lambda v: 0 < v <= 100
    )
    mix_from: float = knobs.number(
        0.0, "share of the epochs before the first that is mixed", "a number from 0 to 1", lambda v: 0 <= v <= 1
    )
    mix_until: float = knobs.number(
        1.0, "share of the epochs up to the last that is mixed", "a number from 0 to 1", lambda v: 0 <= v <= 1
    )
    seed: int = knobs.whole(0, "seed of weights, order and augmentation", low=0, high=SEEDS - 1)
    runs: int = knobs.whole(
        1,
        "trainings, in a folder each, or range tests, with this seed and those after it; tells mean and spread",
        low=1,
        high=10_000,
    )
    dataset: str = knobs.choice(
        "cifar10",
        "what to train on; auto: CIFAR-10 if it is there or can be had, else the built-in stand-in",
        "cifar10",
        "synthetic",
        "auto",
    )
    data_dir: Path = knobs.data_dir()
    val_size: int = knobs.whole(0, "training images held out and evaluated on in place of the test images", low=0)
    limit: int = knobs.whole(0, "use the first N training and N/5 test images; 0: all", low=10, zero=True)
    device: str = knobs.device("where to train")
    precision: str = knobs.precision()
    augment_on: str = knobs.choice(
        "cpu",
        "where images are augmented: on the CPU by Albumentations, or a batch at a time on the device that trains",
        "cpu",
        "device",
    )
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
    tensorboard: bool = knobs.switch(False, "write the epochs for TensorBoard, too, which has to be installed")
    output_dir: Path = knobs.output_dir()
    name: str = knobs.run_name()

    @property
    def seeds(self) -> list[int]:
        """Those of all the runs; after the largest comes 0."""
        return [(self.seed + number) % SEEDS for number in range(self.runs)]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mix_from >= self.mix_until:
            raise InputError(f"--mix-from {self.mix_from}: must be below --mix-until {self.mix_until}")
        if self.finder_start_lr >= self.finder_end_lr:
            raise InputError(
                f"--finder-start-lr {self.finder_start_lr}: must be below --finder-end-lr {self.finder_end_lr}"
            )
