"""Settings of all commands: frozen pydantic models that a command line, a JSON file or Python code fills in.

A field ``batch_size`` is the flag ``--batch-size``. Whatever is wrong with a value is an `InputError` of one line that
names the flag, the value and what is allowed. Nothing here imports torch, so that a bad flag is answered at once.
"""

from __future__ import annotations

import os
import types
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from s10_resnet.errors import InputError

MAX_SEED = 2**32 - 1  # NumPy takes 32 bits
QUICK = {"repeats": 3, "epochs": 1, "batch_size": 128, "max_train_samples": 512}  # what benchmark.py --quick sets

# Settings of previous versions, for old config.json files and old command lines.
RENAMED = {
    "limit": "max_train_samples",
    "optimizer_betas": "betas",
    "anneal": "anneal_strategy",
    "cutout": "cutout_size",
    "finder_start_lr": "lr_finder_start_lr",
    "finder_end_lr": "lr_finder_end_lr",
    "finder_steps": "lr_finder_steps",
    "runs": "num_seeds",
}
RENAMED_VALUES: dict[str, dict[Any, str]] = {"flip": {True: "random", False: "none"}, "tta": {"six": "flip_shift"}}
ANY_VALUE = object()
REMOVED = {  # to the value that changed nothing, with which an old file still loads
    "peak_beta1": 0,
    "bias_lr_factor": 1,
    "norm_momentum": 0.1,
    "cutout_probability": 1,
    "rotation": 0,
    "mix": "none",
    "mix_alpha": ANY_VALUE,  # the three without effect unless mix is set
    "mix_from": ANY_VALUE,
    "mix_until": ANY_VALUE,
    "runs": ANY_VALUE,  # did not change any single training
    "ema_decay": 0,
    "color_jitter": 0,
}
ABSENT_IN_0_1 = {"dirac_init": False, "whitening_init": False, "augment_on": "cpu"}  # what old files without them mean


def _to_path(value: Any) -> Any:
    if isinstance(value, str | Path):
        value = Path(value)
        if b"\0" in os.fsencode(value):  # which raises a ValueError, too, if the system has no such path
            raise ValueError("paths have no zero bytes")
    return value


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


LearningRate = Annotated[float, Gt(0), Le(1000)]
Beta = Annotated[float, Ge(0), Lt(1)]
PathLike = Annotated[Path, BeforeValidator(_to_path)]
PathList = Annotated[tuple[PathLike, ...], BeforeValidator(_to_tuple)]
Betas = Annotated[tuple[Beta, Beta], BeforeValidator(_to_tuple)]
NumWorkers = Annotated[int, Ge(0), Le(256)] | Literal["auto"]
# A text says what is allowed where the constraints do not.
NumSamples = Annotated[Annotated[int, Le(0), Ge(0)] | Annotated[int, Ge(10)], "0 or an integer of at least 10"]
DeviceName = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,4})?)$"), "auto, cpu, cuda, cuda:N or mps"]
RunName = Annotated[
    str,
    Field(pattern=r"^([A-Za-z0-9_][A-Za-z0-9._-]{0,99})?$"),
    "up to 100 letters, digits and . _ -, not starting with a dot or a dash",
]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
AugmentOn = Literal["auto", "cpu", "device"]
TTA = Literal["none", "flip", "flip_shift"]


def _field(group: str, default: Any, description: str, **options: Any) -> Any:
    """A pydantic field of an argument group; a default that can be called is called for each instance."""
    options["default_factory" if callable(default) else "default"] = default
    return Field(description=description, json_schema_extra={"group": group}, **options)


_model, _training, _augmentation, _data, _hardware, _lr_finder, _output = (
    partial(_field, group)
    for group in ("model", "training", "augmentation", "data", "hardware", "learning rate range test", "output")
)

# Fields of several commands.
_CHECKPOINT = _model(..., "run folder (its last.pt) or file of weights: best.pt, last.pt or *.safetensors")
_TTA = _model("none", "test-time augmentation: average the logits over the mirror image, or also over shifted images")
_MAX_TRAIN_SAMPLES = _data(0, "use the first N training and N / 5 test images; 0 uses all")
_DATA_DIR = _data(
    lambda: Path(os.environ.get("S10_DATA_DIR") or "data"),
    "folder of cifar-10-batches-py, or to download it to; the environment variable S10_DATA_DIR sets the default",
)
_DEVICE = _hardware("auto", "device; auto is CUDA if there is a GPU, else Apple's MPS, else the CPU")
_PRECISION = _hardware("auto", "precision of the forward pass")
_AUGMENT_ON = _hardware("auto", "augment on the CPU with Albumentations, or whole batches on the device")
_WORKERS = _hardware("auto", "data loading processes; 0 loads in the main process")
_OUTPUT_DIR = _output(Path("outputs"), "folder that run folders are created in")
_NAME = _output("", "name of the run folder; by default the command, date and time")


def describe_allowed(annotation: Any) -> str:
    """Returns what values an annotation allows, in words, such as "an integer of at least 1"."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        texts = [item for item in args[1:] if isinstance(item, str)]
        return texts[0] if texts else f"{describe_allowed(args[0])} {_describe_bounds(args[1:])}".strip()
    if origin is Literal:
        return args[0] if len(args) == 1 else "one of " + ", ".join(args)
    if origin in (Union, types.UnionType):
        return ", or ".join(describe_allowed(member) for member in args if member is not type(None))
    if origin is tuple:
        member = describe_allowed(args[0])
        return member if args[-1] is Ellipsis else "two numbers" + member.removeprefix("a number")
    return {int: "an integer", float: "a number", bool: "true or false", Path: "a path"}.get(annotation, "a text")


def _describe_bounds(constraints: Iterable[Any]) -> str:
    names = {"gt": "above", "ge": "of at least", "lt": "below", "le": "at most"}
    bounds = {kind: getattr(item, kind) for kind in names for item in constraints if hasattr(item, kind)}
    words = " and ".join(f"{names[kind]} {bound}" for kind, bound in bounds.items())
    return f"from {bounds['ge']} to {bounds['le']}" if bounds.keys() == {"ge", "le"} else words


class Settings(BaseModel):
    """Base of the settings of all commands. A value that is not allowed raises an `InputError`."""

    # Deferred: a command validates its own settings only, and --help none.
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, defer_build=True)
    HIDDEN: ClassVar[frozenset[str]] = frozenset()  # names of fields that have no flag

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Adds the fields to the docstring: `help` would show neither their meaning nor their defaults."""
        cls.__doc__ = f"{cls.__doc__}\n\nAttributes:"
        for name, field in cls.model_fields.items():
            default = "" if field.is_required() else f" = {field.get_default(call_default_factory=True)!r}"
            text = f"{name}{default} ({describe_allowed(field.rebuild_annotation())}): {field.description}"
            cls.__doc__ += "\n" + fill(text, 100, initial_indent=" " * 4, subsequent_indent=" " * 8)

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _to_input_error(type(self), error, values) from None

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain JSON values; paths become strings."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Returns the settings of a JSON object of this or of a previous version; missing keys take their default.

        Raises:
            InputError: For anything else, and for removed settings that were in use.
        """
        if not isinstance(content, dict):
            raise InputError("the settings must be a JSON object")
        return cls(**_upgrade(content, cls.model_fields))

    def replace(self, /, **changes: Any) -> Self:
        """Returns a validated copy with some values changed."""
        return type(self)(**{**dict(self), **changes})


class OneCycleConfig(Settings):
    """Settings of a run that have no part in a range test."""

    epochs: int = _training(24, "number of epochs", ge=1, le=10_000)
    max_lr: LearningRate | Literal["auto"] = _training(5e-3, "peak learning rate; auto runs the range test first")
    pct_start: float = _training(0.2, "fraction of the steps spent increasing the learning rate", ge=0, le=1)
    anneal_strategy: Literal["linear", "cos"] = _training("linear", "linear or cosine annealing")
    div_factor: float = _training(25.0, "initial_lr = max_lr / div_factor", ge=1)
    final_div_factor: float = _training(1e4, "min_lr = initial_lr / final_div_factor", ge=1)


class RunConfig(Settings):
    """Settings that runs and range tests share: what builds data, network and optimizer takes either."""

    batch_size: int = _training(512, "images per training step", ge=1)
    weight_decay: float = _training(0.6, "decoupled weight decay of convolutions and linear layer", ge=0)
    label_smoothing: float = _training(0.2, "label smoothing of the cross entropy", ge=0, lt=1)
    betas: Betas = _training((0.9, 0.99), "Adam's coefficients for running averages of gradient and its square")
    logit_scale: float = _training(0.125, "constant factor on the logits", gt=0)
    dirac_init: bool = _training(True, "initialize all convolutions but the first with torch.nn.init.dirac_")
    whitening_init: bool = _training(True, "initialize the first convolution to whiten patches, and freeze it")
    crop_padding: int = _augmentation(4, "reflection padding before the random crop; 0 disables it", ge=0, le=16)
    flip: Literal["random", "alternating", "none"] = _augmentation(
        "alternating", "horizontal flip: with probability 0.5, or each image in every second epoch"
    )
    cutout_size: int = _augmentation(10, "side of the square filled with the mean pixel; 0 disables it", ge=0, le=32)
    dataset: Literal["cifar10", "synthetic", "auto"] = _data(
        "cifar10", "auto: CIFAR-10 if it is there or can be downloaded, else the synthetic data set"
    )
    data_dir: PathLike = _DATA_DIR
    val_size: int = _data(0, "training images held out, and evaluated on instead of the test images", ge=0)
    max_train_samples: NumSamples = _MAX_TRAIN_SAMPLES
    seed: int = _data(0, "seed of weights, order and augmentation", ge=0, le=MAX_SEED)
    device: DeviceName = _DEVICE
    precision: Precision = _PRECISION
    augment_on: AugmentOn = _AUGMENT_ON
    workers: NumWorkers = _WORKERS
    deterministic: bool = _hardware(False, "use deterministic algorithms on CUDA, which are slower")
    lr_finder_start_lr: LearningRate = _lr_finder(1e-6, "first learning rate")
    lr_finder_end_lr: LearningRate = _lr_finder(1.0, "last learning rate")
    lr_finder_steps: int = _lr_finder(100, "number of training steps", ge=20, le=100_000)
    output_dir: PathLike = _OUTPUT_DIR
    name: RunName = _NAME

    @model_validator(mode="after")
    def _check_lr_finder(self) -> Self:
        start, end = self.lr_finder_start_lr, self.lr_finder_end_lr
        if start >= end:
            raise InputError(f"--lr-finder-start-lr {start}: must be below --lr-finder-end-lr {end}")
        return self


class FindLRConfig(RunConfig):
    """Settings of ``find_lr.py``."""

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Returns the settings of a JSON object, which may be those of a training."""
        train = TrainConfig.from_json(content)
        return cls(**{name: getattr(train, name) for name in cls.model_fields})


class TrainConfig(RunConfig, OneCycleConfig):
    """Settings of ``train.py``."""

    checkpoint_every_minutes: float = _output(5.0, "minutes between checkpoints within an epoch", gt=0)
    tensorboard: bool = _output(False, "also log to TensorBoard")


class SweepConfig(TrainConfig):
    """Settings of ``sweep.py``: those of a training, and what to try instead of some of them."""

    HIDDEN: ClassVar[frozenset[str]] = frozenset({"tensorboard"})

    variants: Annotated[tuple[str, ...], BeforeValidator(_to_tuple)] = _training(
        (),
        "settings to change together, such as flip=alternating or 'cutout-size=6 max-lr=7e-3'; of several values, such "
        "as max-lr=2e-3,5e-3, each is tried, in all combinations",
    )
    num_seeds: int = _training(3, "runs per variant, with --seed and the seeds after it", ge=1, le=10_000)
    val_size: int = _data(5000, "training images held out for evaluation; 0 evaluates on the test images", ge=0)
    dataset: Literal["cifar10", "synthetic"] = _data("cifar10", "data set")

    @property
    def seeds(self) -> list[int]:
        """The seeds of each variant; the largest is followed by 0."""
        return [(self.seed + number) % (MAX_SEED + 1) for number in range(self.num_seeds)]


class EvaluateConfig(Settings):
    """Settings of ``evaluate.py``."""

    checkpoint: PathLike = _CHECKPOINT
    tta: TTA = _TTA
    split: Literal["test", "val"] = _data("test", "images to evaluate on: test images, or those the run held out")
    images: PathLike | None = _data(None, "evaluate on the image files of this folder instead, one folder per class")
    data_dir: PathLike = _DATA_DIR
    device: DeviceName = _DEVICE
    precision: Precision = _PRECISION


class PredictConfig(Settings):
    """Settings of ``predict.py``."""

    images: PathList = _data(..., "image files, folders of them, or patterns such as 'pets/*.jpg'", min_length=1)
    checkpoint: PathLike = _CHECKPOINT
    tta: TTA = _TTA
    json_: bool = _output(False, "print JSON instead of a table")  # the flag is --json: BaseModel has a method json
    plot: PathLike | None = _output(None, "PNG file for the images with their classes and Grad-CAM heat maps")
    device: DeviceName = _DEVICE


class CompareConfig(Settings):
    """Settings of ``compare.py``."""

    runs: PathList = _data(..., "run folders, or folders of run folders", min_length=1)
    output_dir: PathLike = _OUTPUT_DIR
    name: RunName = _NAME


class ExportConfig(Settings):
    """Settings of ``export.py``."""

    checkpoint: PathLike = _CHECKPOINT
    format: Literal["onnx", "safetensors"] = _output("onnx", "format of the exported file")
    output: PathLike | None = _output(None, "file to write; by default beside the checkpoint")
    data_dir: PathLike = _DATA_DIR


class BenchmarkConfig(Settings):
    """Settings of ``benchmark.py``."""

    quick: bool = _training(False, "one epoch of 512 images in batches of 128, three repeats")
    repeats: int = _training(5, "repeats of each measurement; the whole process is measured once", ge=1, le=1000)
    profile: bool = _training(False, "also profile an epoch by operation, to profile.txt")
    gpu_report: bool = _training(
        False,
        "instead, measure on a CUDA GPU whole runs, data loading, idle time, precisions and resuming, in about 5 "
        "minutes, to gpu-report.md; with --quick, a dry run on any device with a few synthetic images",
    )
    epochs: int = _training(24, "number of epochs of the whole process", ge=1, le=10_000)
    batch_size: int = _training(512, "images per training step", ge=2)
    max_train_samples: NumSamples = _MAX_TRAIN_SAMPLES
    dataset: Literal["cifar10", "synthetic"] = _data("cifar10", "data set")
    data_dir: PathLike = _DATA_DIR
    device: DeviceName = _DEVICE
    augment_on: AugmentOn = _AUGMENT_ON
    workers: NumWorkers = _WORKERS
    output_dir: PathLike = _OUTPUT_DIR
    name: RunName = _NAME

    @model_validator(mode="after")
    def _check_quick(self) -> Self:
        for name, quick in QUICK.items():
            value = getattr(self, name)
            if self.quick and value not in (quick, type(self).model_fields[name].default):
                raise InputError(f"{flag(name)} {value}: must be left out with --quick, which sets it")
        return self


def flag(name: str) -> str:
    """Returns the flag of a field."""
    return "--" + name.rstrip("_").replace("_", "-")


def is_positional(field: FieldInfo) -> bool:
    """Whether the values of a field come without a flag, as many as there are."""
    return get_origin(field.annotation) is tuple and get_args(field.annotation)[-1] is Ellipsis


def label(settings_class: type[Settings], name: str) -> str:
    """Returns what a field is called on a command line: its flag, or RUN for the positional ``runs``."""
    return name.removesuffix("s").upper() if is_positional(settings_class.model_fields[name]) else flag(name)


def printable(text: str, limit: int = 80) -> str:
    """Returns a text as it can be shown in one line: without control characters, and shortened."""
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def bad_value(settings_class: type[Settings], name: str, shown: str) -> InputError:
    """Returns the error for a value that a field does not allow."""
    annotation = settings_class.model_fields[name].rebuild_annotation()
    new = RENAMED_VALUES.get(name, {}).get(shown)
    why = f"is now called {new}" if new else f"must be {describe_allowed(annotation)}"
    return InputError(f"{label(settings_class, name)} {printable(shown)}: {why}")


def _to_input_error(settings_class: type[Settings], error: ValidationError, values: dict[str, Any]) -> InputError:
    """Returns the first of pydantic's errors as ours."""
    first = error.errors(include_url=False, include_input=False)[0]
    if not first["loc"]:  # raised by a validator of the whole model, or a name that is no valid Unicode
        return first.get("ctx", {}).get("error", InputError("the names of settings must be valid Unicode"))
    name = str(first["loc"][0])
    if first["type"] == "missing" and name not in values:
        return InputError(f"{label(settings_class, name)}: is required")
    if name not in settings_class.model_fields:
        why = f"is now called {RENAMED[name]}" if RENAMED.get(name) in settings_class.model_fields else "is unknown"
        return InputError(f"setting {printable(name)}: {why}")
    return bad_value(settings_class, name, _show(values[name]))


def _show(value: Any) -> str:
    """Returns a value of Python code or JSON: a text in quotes, "24" being no integer."""
    parts = value if isinstance(value, list | tuple) and value else [value]
    return " ".join(str(part) if isinstance(part, Path) else repr(part) for part in parts)


def _upgrade(content: dict[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Returns settings by today's names; those without effect that no longer exist are dropped."""
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = key if key in known else RENAMED.get(key, key)
        if name in known or key not in REMOVED:
            values[name] = RENAMED_VALUES.get(name, {}).get(value, value) if isinstance(value, bool | str) else value
        elif REMOVED[key] not in (ANY_VALUE, value):
            raise InputError(f"{flag(key)} {printable(_show(value))}: this setting was removed")
    if any(key in RENAMED or key in REMOVED for key in content):
        values = {name: value for name, value in ABSENT_IN_0_1.items() if name in known} | values
    return values
