"""What all groups of settings have in common: frozen dataclasses of knobs that check themselves."""

from __future__ import annotations

import json
from dataclasses import Field, asdict, fields
from typing import Any, ClassVar, Self

from s10_resnet.errors import InputError


class Settings:
    """The base of a frozen dataclass whose fields come from `s10_resnet.knobs`: one command's settings.

    A field ``batch_size`` is the flag ``--batch-size``.

    Attributes:
        SECTIONS: Title of each part of the fields, by the field that it begins with.
        FLAGLESS: Names of fields that stay at their defaults: a command line has no flag for them.

    Raises:
        InputError: When a value is out of range; the message names flag, value and what is allowed.
    """

    SECTIONS: ClassVar[dict[str, str]] = {}
    FLAGLESS: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not item.metadata["knob"].accepts(value):
                raise bad_value(item, value)

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values; paths become strings."""
        return json.loads(json.dumps(asdict(self), default=str))

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """The settings that ``to_json`` made this of.

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
    knob = item.metadata["knob"]
    shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return InputError(f"{knob.metavar if knob.positional else flag(item.name)} {shown}: must be {knob.allowed}")
