"""The kinds of settings: what each takes, how it is read from a command line or JSON, and how it is explained."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

REQUIRED = object()  # in place of a default


@dataclass(frozen=True)
class Knob:
    """What the command line and the validation need to know about one field."""

    help: str
    allowed: str
    parse: Callable[[str], Any]
    accepts: Callable[[Any], bool]
    count: int | None = None  # values after the flag, where there is more than one
    revive: Callable[[Any], Any] = lambda value: value  # from what JSON made of it
    positional: bool = False  # values that come without a flag, as many as there are
    metavar: str = ""  # what stands for a value; by default the last word of the field's name


def setting(default: Any, knob: Knob) -> Any:
    """A dataclass field with its knob; a default that can be called is called for each instance."""
    if default is REQUIRED:
        return field(metadata={"knob": knob})
    if callable(default):
        return field(default_factory=default, metadata={"knob": knob})
    return field(default=default, metadata={"knob": knob})


def whole(default: int, text: str, *, low: int, high: int | None = None, zero: bool = False) -> Any:
    """A whole number, ``zero`` being one more value below ``low``."""

    def accepts(value: Any) -> bool:
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return (zero and value == 0) or (value >= low and (high is None or value <= high))

    allowed = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    return setting(default, Knob(text, ("0 or " if zero else "") + allowed, int, accepts))


def number(default: float, text: str, allowed: str, inside: Callable[[float], bool]) -> Any:
    """A finite number for which ``inside`` holds."""
    return setting(default, Knob(text, allowed, float, lambda value: _is_number(value) and inside(value)))


def learning_rate(default: float, text: str) -> Any:
    """A number above 0."""
    return number(default, text, "a number above 0 and at most 1000", lambda value: 0 < value <= 1000)


def choice(default: str, text: str, *options: str) -> Any:
    """One of a few words."""
    return setting(default, Knob(text, "one of " + ", ".join(options), str, lambda value: value in options))


def switch(default: bool, text: str) -> Any:
    """Yes or no."""
    return setting(default, Knob(text, "true or false", bool, lambda value: isinstance(value, bool)))


def word(default: str, text: str, allowed: str, fits: Callable[[str], Any]) -> Any:
    """A string for which ``fits`` holds."""
    return setting(default, Knob(text, allowed, str, lambda value: isinstance(value, str) and bool(fits(value))))


def betas(default: tuple[float, float], text: str) -> Any:
    """Adam's two decay rates."""

    def accepts(value: Any) -> bool:
        return isinstance(value, tuple) and len(value) == 2 and all(_is_number(b) and 0 <= b < 1 for b in value)

    def revive(value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    return setting(default, Knob(text, "two numbers of at least 0 and below 1", float, accepts, count=2, revive=revive))


def path(default: Path | Callable[[], Path] | object, text: str, allowed: str = "a path") -> Any:
    """A path, whether or not there is anything."""
    return setting(default, Knob(text, allowed, _path, _is_path, revive=_revive_path))


def path_or_none(text: str, allowed: str = "a path") -> Any:
    """A path, or none if the flag is not given."""
    knob: Knob = path(REQUIRED, text, allowed).metadata["knob"]
    return setting(None, replace(knob, accepts=lambda value: value is None or _is_path(value)))


def paths(text: str, metavar: str, allowed: str) -> Any:
    """One path or more, given without a flag."""

    def accepts(value: Any) -> bool:
        return isinstance(value, tuple) and len(value) > 0 and all(map(_is_path, value))

    return setting(REQUIRED, Knob(text, allowed, _path, accepts, positional=True, metavar=metavar))


def words(text: str, metavar: str, allowed: str) -> Any:
    """Any number of texts, given without a flag."""

    def accepts(value: Any) -> bool:
        return isinstance(value, tuple) and all(isinstance(word, str) for word in value)

    def revive(value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    return setting((), Knob(text, allowed, str, accepts, positional=True, revive=revive, metavar=metavar))


def or_auto(knob_field: Any, default: Any) -> Any:
    """The same knob, with the word ``auto`` as one more value."""
    knob: Knob = knob_field.metadata["knob"]
    return setting(
        default,
        replace(
            knob,
            allowed=f"{knob.allowed}, or auto",
            parse=lambda text: text if text == "auto" else knob.parse(text),
            accepts=lambda value: value == "auto" or knob.accepts(value),
        ),
    )


def data_dir() -> Any:
    """Where CIFAR-10 is."""
    text = "folder that holds or gets cifar-10-batches-py; the default can be set in S10_DATA_DIR"
    return path(lambda: Path(os.environ.get("S10_DATA_DIR", "data")), text, "a folder")


def output_dir() -> Any:
    """Where the run folders are."""
    return path(Path("outputs"), "folder of the run folders", "a folder")


def run_name() -> Any:
    """What a run's folder is called."""
    return word(
        "",
        "the run's folder below --output-dir; by default the command, date and time",
        "up to 100 letters, digits and . _ -, not starting with a dot or a dash",
        lambda text: text == "" or re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", text),
    )


def device(text: str) -> Any:
    """A processor."""
    return word(
        "auto",
        text,
        "auto, cpu, cuda, cuda:N or mps",
        lambda text: re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,4})?", text),
    )


def precision() -> Any:
    """A number format."""
    return choice("auto", "number format of the forward pass", "auto", "fp32", "bf16", "fp16")


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max


def _path(text: str) -> Path:
    if not _is_path(Path(text)):
        raise ValueError("the system has no such paths")
    return Path(text)


def _revive_path(value: Any) -> Any:
    return Path(value) if isinstance(value, str) else value


def _is_path(value: Any) -> bool:
    try:
        return isinstance(value, Path) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False
