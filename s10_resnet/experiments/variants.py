"""Variants of a recipe, as they are typed for a sweep: ``max-lr=2e-3,5e-3 flip=alternating``."""

from __future__ import annotations

from dataclasses import Field, fields, replace
from itertools import product
from typing import Any, NamedTuple

from s10_resnet.config import Config
from s10_resnet.errors import InputError
from s10_resnet.options import Sweep
from s10_resnet.settings import bad_value, flag

AS_GIVEN = "as given"  # label of the recipe itself
SECTIONS = ("training", "augmentation", "range test")  # of the settings; the others are not the recipe's
SWITCH = {"yes": True, "no": False}


class Variant(NamedTuple):
    """A recipe: what it was called, and the settings it comes to."""

    label: str
    config: Config


def expand(settings: Sweep) -> list[Variant]:
    """The recipe as it is given, and then all variants that differ from it and from each other.

    A variant is words ``NAME=VALUE``; of several values between commas all combinations are made, and the two of
    ``optimizer-betas`` have a colon between them.

    Raises:
        InputError: For what is no setting of a recipe, or a value that is not allowed.
    """
    base = Config(**{item.name: getattr(settings, item.name) for item in fields(Config)})
    base = replace(base, runs=1, name="")
    found = {base: Variant(AS_GIVEN, base)}
    for text in settings.variants:
        if not text.split():
            raise InputError(f"VARIANT {text!r}: must be settings such as max-lr=2e-3,5e-3")
        for combination in product(*map(_choices, text.split())):
            config = replace(base, **{name: value for name, _, value in combination})
            label = " ".join(f"{_typed_name(name)}={typed}" for name, typed, _ in combination)
            found.setdefault(config, Variant(label, config))
    return list(found.values())


def _choices(word: str) -> list[tuple[str, str, Any]]:
    """A setting's name, value as it was typed, and value, for each of the values in a word."""
    name, equals, values = word.partition("=")
    item = _recipe().get(name.replace("-", "_"))
    if item is None or not equals:
        names = ", ".join(map(_typed_name, _recipe()))
        raise InputError(f"VARIANT {word}: must be NAME=VALUE or NAME=VALUE,VALUE, where NAME is one of {names}")
    return [(item.name, typed, _value(item, typed)) for typed in values.split(",")]


def _value(item: Field, typed: str) -> Any:
    knob = item.metadata["knob"]
    try:
        if isinstance(item.default, bool):
            value = SWITCH[typed]
        else:
            value = tuple(map(knob.parse, typed.split(":"))) if knob.count else knob.parse(typed)
    except (KeyError, ValueError):
        raise bad_value(item, typed) from None
    if not knob.accepts(value):
        raise bad_value(item, typed)
    return value


def _recipe() -> dict[str, Field]:
    section, recipe = "", {}
    for item in fields(Config):
        section = Config.SECTIONS.get(item.name, section)
        if section in SECTIONS:
            recipe[item.name] = item
    return recipe


def _typed_name(name: str) -> str:
    return flag(name).removeprefix("--")
