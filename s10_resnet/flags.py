"""The command line, generated from the fields of `Settings`: flags to settings, and settings back to flags."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, NoReturn

from s10_resnet.config import Config
from s10_resnet.errors import InputError
from s10_resnet.knobs import Knob
from s10_resnet.settings import Settings, bad_value, flag


def read(
    kind: type[Settings], argv: Sequence[str] | None = None, *, resume: str = "", **parser_options: Any
) -> dict[str, Any]:
    """Reads a command line.

    Args:
        kind: Whose fields the flags are.
        argv: The arguments after the program's name; by default those of this process.
        resume: What the flag ``--resume`` does, which is no setting but names what to go on with; without a text
            there is no such flag.
        **parser_options: Passed to `argparse.ArgumentParser`, such as ``prog`` and ``description``.

    Returns:
        The values of the flags that were given, by the name of their field; ``resume`` is a path.

    Raises:
        InputError: For an unknown flag, a bad value, or a required one that is missing.
    """
    parser = _Parser(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **parser_options)
    section: Any = parser
    for item in fields(kind):
        if item.name in kind.SECTIONS:
            section = parser.add_argument_group(kind.SECTIONS[item.name])
        if item.name not in kind.FLAGLESS:
            _add(section, item)
    if resume:
        section.add_argument("--resume", metavar="RUN", default=argparse.SUPPRESS, help=resume)
    given = vars(parser.parse_args(_attach_negatives(kind, sys.argv[1:] if argv is None else argv)))
    read = {item.name: _parse(item, given[item.name]) for item in fields(kind) if item.name in given}
    return {**read, "resume": _existing(given["resume"])} if "resume" in given else read


def line(config: Config) -> str:
    """The flags that differ from the defaults, quoted for a shell; ``read`` reads them back."""
    default = Config()
    words: list[str] = []
    for item in fields(config):
        value = getattr(config, item.name)
        if value == getattr(default, item.name):
            continue
        if isinstance(value, bool):
            words.append(flag(item.name) if value else flag(f"no_{item.name}"))
        else:
            words += [flag(item.name), *map(_typed, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


def _typed(value: Any) -> str:
    text = str(value)
    return f"./{text}" if isinstance(value, Path) and text.startswith("-") else text


class _Parser(argparse.ArgumentParser):
    """Raises where argparse would print its usage and exit: the caller owns the process."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help lists the flags")


def _add(parser: Any, item: Field) -> None:
    knob: Knob = item.metadata["knob"]
    metavar = knob.metavar or item.name.rsplit("_", 1)[-1].upper()
    required = item.default is MISSING and item.default_factory is MISSING
    if knob.positional:
        nargs, default = ("+", None) if required else ("*", argparse.SUPPRESS)
        parser.add_argument(item.name, nargs=nargs, default=default, metavar=metavar, help=knob.help)
        return
    options = {"default": argparse.SUPPRESS, "required": required}
    if isinstance(item.default, bool):
        options["action"] = argparse.BooleanOptionalAction
        text = f"{knob.help} (default: {'yes' if item.default else 'no'})"
    else:
        options |= {"nargs": knob.count, "metavar": metavar}
        text = f"{knob.help} ({knob.allowed}; {'required' if required else f'default: {_default(item)}'})"
    parser.add_argument(flag(item.name), help=text.replace("%", "%%"), **options)


def _default(item: Field) -> str:
    default = item.default_factory() if item.default is MISSING else item.default
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return "none" if shown in ("", None) else str(shown)


def _parse(item: Field, text: str | bool | list[str]) -> Any:
    knob: Knob = item.metadata["knob"]
    try:
        value = tuple(knob.parse(word) for word in text) if isinstance(text, list) else knob.parse(text)
    except ValueError:
        raise bad_value(item, text) from None
    if not knob.accepts(value):
        raise bad_value(item, text)  # as it was typed: 0, not 0.0
    return value


def _existing(text: str) -> Path:
    try:
        if text and Path(text).exists():
            return Path(text)
    except (OSError, ValueError):  # longer than the system's paths, or with a zero byte
        pass
    raise InputError(f"--resume {text}: must be the folder of what is to go on, or a file in it")


def _attach_negatives(kind: type[Settings], argv: Sequence[str]) -> list[str]:
    """Writes ``--max-lr -1e-3`` as ``--max-lr=-1e-3``, which argparse would take for a flag without its value."""
    single = {flag(item.name) for item in fields(kind) if item.metadata["knob"].count is None}
    words: list[str] = []
    for word in argv:
        if words and words[-1] in single and re.match(r"-[\d.]|-inf|-nan", word):
            words[-1] += "=" + word
        else:
            words.append(word)
    return words
