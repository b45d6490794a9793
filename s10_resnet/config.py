"""Every knob of the package in one flat, frozen dataclass, and the command line that is generated from it."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from s10_resnet.errors import InputError


@dataclass(frozen=True)
class Knob:
    """What the command line and the validation need to know about one field."""

    help: str
    allowed: str
    parse: Callable[[str], Any]
    accepts: Callable[[Any], bool]
    count: int | None = None  # values after the flag, where there is more than one


def _knob(default: Any, knob: Knob) -> Any:
    if callable(default):
        return field(default_factory=default, metadata={"knob": knob})
    return field(default=default, metadata={"knob": knob})


def _whole(default: int, text: str, *, low: int, high: int | None = None, zero: bool = False) -> Any:
    def accepts(value: Any) -> bool:
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return (zero and value == 0) or (value >= low and (high is None or value <= high))

    allowed = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    return _knob(default, Knob(text, ("0 or " if zero else "") + allowed, int, accepts))


def _number(default: float, text: str, allowed: str, inside: Callable[[float], bool]) -> Any:
    def accepts(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and inside(value)

    return _knob(default, Knob(text, allowed, float, accepts))


def _choice(default: str, text: str, *options: str) -> Any:
    return _knob(default, Knob(text, "one of " + ", ".join(options), str, lambda value: value in options))


def _or_auto(knob_field: Any, default: Any) -> Any:
    """The same knob, with the word ``auto`` as one more value."""
    knob: Knob = knob_field.metadata["knob"]
    return _knob(
        default,
        Knob(
            help=knob.help,
            allowed=f"{knob.allowed}, or auto",
            parse=lambda text: text if text == "auto" else knob.parse(text),
            accepts=lambda value: value == "auto" or knob.accepts(value),
        ),
    )


def _betas(default: tuple[float, float], text: str) -> Any:
    def accepts(value: Any) -> bool:
        return isinstance(value, tuple) and len(value) == 2 and all(0 <= beta < 1 for beta in value)

    return _knob(default, Knob(text, "two numbers of at least 0 and below 1", float, accepts, count=2))


def _path(default: Path | Callable[[], Path], text: str) -> Any:
    return _knob(default, Knob(text, "a folder", Path, lambda value: isinstance(value, Path)))


def _data_dir() -> Path:
    return Path(os.environ.get("S10_DATA_DIR", "data"))


def _lr(default: float, text: str) -> Any:
    return _number(default, text, "a number above 0 and at most 1000", lambda value: 0 < value <= 1000)


@dataclass(frozen=True)
class Config:
    """One run's settings. A field ``batch_size`` is the flag ``--batch-size``.

    Raises:
        InputError: When a value is out of range; the message names flag, value and what is allowed.
    """

    epochs: int = _whole(24, "passes over the training images", low=1)
    batch_size: int = _whole(512, "images in a step", low=1)
    max_lr: float | str = _or_auto(_lr(5e-3, "peak learning rate; auto runs the range test first"), 5e-3)
    weight_decay: float = _number(
        0.3,
        "decoupled weight decay of the convolutions and the linear layer",
        "a number of at least 0",
        lambda v: v >= 0,
    )
    label_smoothing: float = _number(
        0.1, "share of the target spread over all classes", "a number of at least 0 and below 1", lambda v: 0 <= v < 1
    )
    optimizer_betas: tuple[float, float] = _betas((0.9, 0.99), "Adam's two decay rates")
    pct_start: float = _number(
        0.2, "share of the steps before the peak learning rate", "a number from 0 to 1", lambda v: 0 <= v <= 1
    )
    anneal: str = _choice("linear", "shape of the rise and the fall of the learning rate", "linear", "cos")
    div_factor: float = _number(
        25.0, "peak learning rate over the first one", "a number of at least 1", lambda v: v >= 1
    )
    final_div_factor: float = _number(
        1e4, "first learning rate over the last one", "a number of at least 1", lambda v: v >= 1
    )
    logit_scale: float = _number(0.125, "constant factor on the logits", "a number above 0", lambda v: v > 0)
    crop_padding: int = _whole(
        4, "pixels of reflection around an image before the random crop; 0: no crop", low=0, high=16
    )
    flip: bool = _knob(True, Knob("mirror half of the images", "true or false", bool, lambda v: isinstance(v, bool)))
    cutout: int = _whole(8, "side of the square filled with the mean pixel; 0: no cutout", low=0, high=32)
    seed: int = _whole(0, "seed of weights, order and augmentation", low=0, high=2**32 - 1)
    dataset: str = _choice(
        "cifar10",
        "what to train on; auto: CIFAR-10 if it is there or can be had, else the built-in stand-in",
        "cifar10",
        "synthetic",
        "auto",
    )
    data_dir: Path = _path(
        _data_dir,
        "folder that holds or gets cifar-10-batches-py; the default can be set in S10_DATA_DIR",
    )
    val_size: int = _whole(0, "training images held out and evaluated on in place of the test images", low=0)
    limit: int = _whole(0, "use the first N training and N/5 test images; 0: all", low=10, zero=True)
    device: str = _knob(
        "auto",
        Knob(
            "where to train",
            "auto, cpu, cuda, cuda:N or mps",
            str,
            lambda v: isinstance(v, str) and re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", v) is not None,
        ),
    )
    precision: str = _choice("auto", "number format of the forward pass", "auto", "fp32", "bf16", "fp16")
    workers: int | str = _or_auto(_whole(0, "augmentation processes", low=0), "auto")
    finder_start_lr: float = _lr(1e-6, "first learning rate of the range test")
    finder_end_lr: float = _lr(1.0, "last learning rate of the range test")
    finder_steps: int = _whole(100, "steps of the range test", low=20)
    output_dir: Path = _path(Path("outputs"), "folder of the run folders")
    name: str = _knob(
        "",
        Knob(
            "the run's folder below --output-dir; by default the command, date and time",
            "letters, digits and . _ -, not starting with a dot",
            str,
            lambda v: isinstance(v, str) and (v == "" or re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", v) is not None),
        ),
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not item.metadata["knob"].accepts(value):
                raise _bad(item, value)
        if self.finder_start_lr >= self.finder_end_lr:
            raise InputError(
                f"--finder-start-lr {self.finder_start_lr}: must be below --finder-end-lr {self.finder_end_lr}"
            )

    @classmethod
    def from_cli(cls, argv: Sequence[str] | None = None, **parser_options: Any) -> Config:
        """Reads the flags of a command line.

        Args:
            argv: The arguments after the program's name; by default those of this process.
            **parser_options: Passed to `argparse.ArgumentParser`, such as ``prog`` and ``description``.

        Raises:
            InputError: For an unknown flag or a bad value.
        """
        parser = _Parser(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **parser_options)
        for item in fields(cls):
            _add_flag(parser, item)
        given = vars(parser.parse_args(_attach_negatives(sys.argv[1:] if argv is None else argv)))
        return cls(**{item.name: _parse(item, given[item.name]) for item in fields(cls) if item.name in given})

    def to_cli(self) -> str:
        """The flags that differ from the defaults, quoted for a shell; ``from_cli`` reads them back."""
        default = type(self)()
        words: list[str] = []
        for item in fields(self):
            value = getattr(self, item.name)
            if value == getattr(default, item.name):
                continue
            if isinstance(value, bool):
                words.append(_flag(item) if value else _flag(item).replace("--", "--no-", 1))
            else:
                words += [_flag(item), *map(str, value if isinstance(value, tuple) else (value,))]
        return shlex.join(words)

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values; paths become strings."""
        return json.loads(json.dumps(asdict(self), default=str))


class _Parser(argparse.ArgumentParser):
    """Raises where argparse would print its usage and exit: the caller owns the process."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help lists the flags")


def _add_flag(parser: argparse.ArgumentParser, item: Field) -> None:
    knob: Knob = item.metadata["knob"]
    default = item.default_factory() if item.default is MISSING else item.default
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    text = f"{knob.help} ({knob.allowed}; default: {'none' if shown == '' else shown})".replace("%", "%%")
    if isinstance(default, bool):
        action = argparse.BooleanOptionalAction
        text = f"{knob.help} (default: {'yes' if default else 'no'})"
        parser.add_argument(_flag(item), action=action, default=argparse.SUPPRESS, help=text)
    else:
        metavar = item.name.rsplit("_", 1)[-1].upper()
        parser.add_argument(_flag(item), default=argparse.SUPPRESS, nargs=knob.count, metavar=metavar, help=text)


def _flag(item: Field) -> str:
    return "--" + item.name.replace("_", "-")


def _parse(item: Field, text: str | bool | list[str]) -> Any:
    knob: Knob = item.metadata["knob"]
    try:
        value = tuple(knob.parse(word) for word in text) if isinstance(text, list) else knob.parse(text)
    except ValueError:
        raise _bad(item, text) from None
    if not knob.accepts(value):
        raise _bad(item, text)  # as it was typed: 0, not 0.0
    return value


def _bad(item: Field, value: Any) -> InputError:
    shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return InputError(f"{_flag(item)} {shown}: must be {item.metadata['knob'].allowed}")


def _attach_negatives(argv: Sequence[str]) -> list[str]:
    """Writes ``--max-lr -1e-3`` as ``--max-lr=-1e-3``, which argparse would take for a flag without its value."""
    single = {_flag(item) for item in fields(Config) if item.metadata["knob"].count is None}
    words: list[str] = []
    for word in argv:
        if words and words[-1] in single and re.match(r"-[\d.]|-inf|-nan", word):
            words[-1] += "=" + word
        else:
            words.append(word)
    return words
