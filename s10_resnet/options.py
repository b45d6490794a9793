"""The settings of the commands that do not train: one dataclass a command."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

from s10_resnet import knobs
from s10_resnet.config import Config
from s10_resnet.errors import InputError
from s10_resnet.knobs import REQUIRED
from s10_resnet.settings import Settings, flag

VIEWS = ("none", "flip", "six")  # see `s10_resnet.evaluation.tta`
FORMATS = ("onnx", "torch", "safetensors")
QUICK = {"repeats": 3, "epochs": 1, "batch_size": 128, "limit": 512}  # what a quick benchmark comes to


def _checkpoint() -> Path:
    return knobs.path(REQUIRED, "weights of a run: its best.pt or last.pt, or a safetensors file of them", "a file")


def _tta() -> str:
    text = "test-time augmentation, the views of an image to average over: an image and its mirror image, or six"
    return knobs.choice("none", text, *VIEWS)


@dataclass(frozen=True)
class Evaluation(Settings):
    """What `s10_resnet.evaluation.evaluate.evaluate` is asked for."""

    SECTIONS: ClassVar[dict[str, str]] = {"checkpoint": "network", "split": "images", "device": "machine"}

    checkpoint: Path = _checkpoint()
    tta: str = _tta()
    split: str = knobs.choice(
        "test", "images of the run's data set to evaluate on; val: those that it held out", "test", "val"
    )
    images: Path | None = knobs.path_or_none(
        "evaluate on the pictures below this folder instead, which has a folder for each class", "a folder"
    )
    data_dir: Path = knobs.data_dir()
    device: str = knobs.device("where to compute")
    precision: str = knobs.precision()


@dataclass(frozen=True)
class Prediction(Settings):
    """What `s10_resnet.evaluation.predict.show` is asked for."""

    SECTIONS: ClassVar[dict[str, str]] = {"checkpoint": "network", "json": "output", "device": "machine"}

    images: tuple[Path, ...] = knobs.paths(
        "pictures, folders of them, or patterns such as 'pets/*.jpg'", "IMAGE", "a path"
    )
    checkpoint: Path = _checkpoint()
    tta: str = _tta()
    json: bool = knobs.switch(False, "print JSON in place of a table")
    plot: Path | None = knobs.path_or_none(
        "draw the pictures with their classes and where the network looked (Grad-CAM) into this PNG", "a file"
    )
    device: str = knobs.device("where to compute")


@dataclass(frozen=True)
class Comparison(Settings):
    """What `s10_resnet.experiments.compare.compare` is asked for."""

    SECTIONS: ClassVar[dict[str, str]] = {"output_dir": "output"}

    runs: tuple[Path, ...] = knobs.paths("folders of runs, or of several runs", "RUN", "a folder")
    output_dir: Path = knobs.output_dir()
    name: str = knobs.run_name()


@dataclass(frozen=True)
class Export(Settings):
    """What `s10_resnet.models.export.export` is asked for."""

    SECTIONS: ClassVar[dict[str, str]] = {"checkpoint": "network", "format": "output", "data_dir": "check"}

    checkpoint: Path = _checkpoint()
    format: str = knobs.choice("onnx", "what to write; torch is a program of torch.export", *FORMATS)
    output: Path | None = knobs.path_or_none("where to write it; by default beside the checkpoint", "a file")
    data_dir: Path = knobs.data_dir()


@dataclass(frozen=True)
class Sweep(Config):
    """What `s10_resnet.experiments.sweep.sweep` is asked for: a recipe, and what to try in place of parts of it."""

    SECTIONS: ClassVar[dict[str, str]] = {**Config.SECTIONS, "variants": "what to try"}
    FLAGLESS: ClassVar[frozenset[str]] = frozenset({"checkpoint_every_minutes", "tensorboard"})

    runs: int = knobs.whole(3, "trainings of each variant, with this seed and those after it", low=1, high=10_000)
    val_size: int = knobs.whole(
        5000, "training images held out and evaluated on; 0: the test images are, which is no way to tune", low=0
    )
    dataset: str = knobs.choice("cifar10", "what to train on", "cifar10", "synthetic")
    variants: tuple[str, ...] = knobs.words(
        "settings to change together, in quotes if there are several: flip=alternating, 'cutout=6 max-lr=7e-3'; "
        "several values of a setting are tried one by one, and in all combinations: max-lr=2e-3,5e-3,1e-2",
        "VARIANT",
        "settings such as max-lr=2e-3,5e-3",
    )


@dataclass(frozen=True)
class Benchmark(Settings):
    """What `s10_resnet.benchmark.benchmark.benchmark` is asked for."""

    SECTIONS: ClassVar[dict[str, str]] = {
        "quick": "amount",
        "dataset": "data",
        "device": "machine",
        "output_dir": "output",
    }

    quick: bool = knobs.switch(
        False, "two minutes on two CPU cores: one epoch of 512 images in batches of 128, three times"
    )
    repeats: int = knobs.whole(5, "times that each stage is timed, the whole process but once", low=1, high=1000)
    profile: bool = knobs.switch(False, "also profile an epoch, by operation, into profile.txt")
    growth: bool = knobs.switch(
        False, "also watch time, memory, open files and processes grow over 8, 16 and 24 epochs and over ten runs"
    )
    epochs: int = knobs.whole(24, "epochs of the whole process", low=1, high=10_000)
    batch_size: int = knobs.whole(512, "images in a step", low=2)
    limit: int = knobs.whole(0, "use the first N training and N/5 test images; 0: all", low=10, zero=True)
    dataset: str = knobs.choice("cifar10", "what to train on", "cifar10", "synthetic")
    data_dir: Path = knobs.data_dir()
    device: str = knobs.device("where to train")
    augment_on: str = knobs.choice("cpu", "where the package augments images", "cpu", "device")
    workers: int | str = knobs.or_auto(
        knobs.whole(0, "augmentation processes, of the textbook script, too", low=0, high=256), "auto"
    )
    output_dir: Path = knobs.output_dir()
    name: str = knobs.run_name()

    def __post_init__(self) -> None:
        super().__post_init__()
        for item in fields(self):
            value = getattr(self, item.name)
            if self.quick and item.name in QUICK and value not in (item.default, QUICK[item.name]):
                raise InputError(f"{flag(item.name)} {value}: must be left out with --quick, which sets it")
