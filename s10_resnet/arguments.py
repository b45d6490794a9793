"""The command line, made of the fields of `Settings`."""

from __future__ import annotations

import argparse
import os.path
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from s10_resnet.config import (
    REMOVED,
    RENAMED,
    RunConfig,
    Settings,
    TrainConfig,
    bad_value,
    flag,
    is_positional,
    label,
    printable,
)
from s10_resnet.errors import InputError
from s10_resnet.utils.console import write_text
from s10_resnet.utils.io import read_json
from s10_resnet.utils.launch import command

RECIPE_GROUPS = ("training", "augmentation", "learning rate range test")  # what the variants of a sweep can change
OTHER_TOOLS = {  # what some settings are called elsewhere
    "lr": "max_lr",
    "learning_rate": "max_lr",
    "wd": "weight_decay",
    "bs": "batch_size",
    "num_workers": "workers",
    "amp": "precision",
}
DEVICES = "{auto,cpu,cuda,cuda:N,mps}"  # these choices are no Literal, because of the N
HINT = "--help lists what there is"
CONFIG_HELP = "start from the settings in the config.json of an earlier run; flags override them"


def make_parser(settings_class: type[Settings], resume_help: str = "", **texts: Any) -> argparse.ArgumentParser:
    """Returns a parser with a flag for each field, which leaves out of its result what is not given.

    Args:
        settings_class: The class whose fields become flags.
        resume_help: What ``--resume`` does; without it there is no such flag.
        **texts: ``prog``, ``description`` and ``epilog`` of `argparse.ArgumentParser`.
    """
    parser = _Parser(**texts, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    # -1e-3 is a value, not a flag; by default argparse takes only -1 and -0.001 for one.
    parser._negative_number_matcher = re.compile(r"-[\d.]|-inf|-nan")
    parser.add_argument("--version", action="version", version=_version())
    if issubclass(settings_class, RunConfig):
        parser.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    if resume_help:
        parser.add_argument("--resume", metavar="RUN", help=resume_help)
    groups: dict[str, Any] = {}
    for name, field in settings_class.model_fields.items():
        text = _help(field)
        if is_positional(field):
            parser.add_argument(name, nargs="*", metavar=label(settings_class, name), help=text)
        elif name not in settings_class.HIDDEN:
            title = _group(field)
            if title not in groups:
                groups[title] = parser.add_argument_group(title)
            groups[title].add_argument(flag(name), dest=name, help=text, **_action(name, field.annotation))
    return parser


def parse_args(
    settings_class: type[Settings],
    argv: Sequence[str] | None = None,
    **parser_options: Any,
) -> dict[str, Any]:
    """Reads a command line.

    Args:
        settings_class: The class whose fields become flags.
        argv: The arguments after the program's name; by default those of this process.
        **parser_options: Passed to `make_parser`.

    Returns:
        The values that were given, by flags or in the file of ``--config``, by the name of their field; ``resume`` is
        a path. Each is valid by itself; whether they fit together, and what is missing, is for ``settings_class`` to
        say.

    Raises:
        InputError: For an unknown flag or a bad value.
    """
    arguments, extras = make_parser(settings_class, **parser_options).parse_known_args(argv)
    if extras:
        word, fields = extras[0], settings_class.model_fields
        why = f"unexpected argument; {HINT}"
        if word.startswith("-"):
            word = word.partition("=")[0]
            known = {name for name, field in fields.items() if not is_positional(field)} - settings_class.HIDDEN
            why = _explain_unknown(word.lstrip("-"), known, prefix="--")
        elif "checkpoint" in fields:
            why = f"unexpected argument; did you mean --checkpoint {printable(word)}?"
        raise InputError(f"{printable(word)}: {why}")
    # Python 3.11 makes [] of --name=--.
    typed = {name: "--" if text == [] else text for name, text in vars(arguments).items()}
    resume, config = typed.pop("resume", None), typed.pop("config", None)
    if resume is not None and config is not None:
        raise InputError("--config: cannot be used with --resume, which takes the settings of the run")
    given = {} if config is None else _read_config(settings_class, config)
    given |= {name: _to_value(settings_class, name, text) for name, text in typed.items()}
    if resume is None:
        return given
    if not os.path.exists(resume):  # noqa: PTH110 - Path.exists raises an error for what can be no path
        raise InputError(f"--resume {printable(resume)}: must be an existing folder of a run, or a file in one")
    return {**given, "resume": Path(resume)}


def to_flags(values: Mapping[str, Any]) -> list[str]:
    """Returns values by the name of their field as the words of a command line; `parse_args` reads them back."""
    words: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(flag(name if value else f"no_{name}"))
        else:
            words += [flag(name), *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def format_args(settings: Settings) -> str:
    """Returns the flags that differ from the defaults, quoted for a shell."""
    defaults = {n: f.get_default(call_default_factory=True) for n, f in type(settings).model_fields.items()}
    return shlex.join(to_flags({name: value for name, value in settings if value != defaults[name]}))


def parse_variant(text: str) -> dict[str, dict[str, Any]]:
    """Reads a variant of a sweep, such as ``max-lr=2e-3,5e-3 flip=alternating``.

    Of several values between commas all combinations are made; the two of ``betas`` have a colon between them.

    Returns:
        By a label such as ``max-lr=2e-3 flip=alternating``, the values to change, by the name of their field.

    Raises:
        InputError: For what no variant can change, or a value that is not allowed.
    """
    words = text.split()
    if not words:
        raise InputError(f"VARIANT {printable(repr(text))}: must be settings such as max-lr=2e-3,5e-3")
    combinations = product(*map(_parse_choices, words))
    return {" ".join(labels): dict(changes) for labels, changes in (zip(*c, strict=True) for c in combinations)}


class _Parser(argparse.ArgumentParser):
    """Raises where argparse would print its usage and exit: the caller owns the process."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{printable(message.removeprefix('argument '), 200)}; --help lists the flags")

    def _print_message(self, message: str, file: Any = None) -> None:
        write_text(file, message)  # of --help, which shows what S10_DATA_DIR is set to


def _action(name: str, annotation: Any) -> dict[str, Any]:
    """Returns what makes a flag take the values of a field."""
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(annotation) is tuple:
        values = tuple(_placeholder(name, member) for member in get_args(annotation))
        return {"nargs": len(values), "metavar": values}
    return {"metavar": _placeholder(name, annotation)}


def _placeholder(name: str, annotation: Any) -> str:
    """Returns what stands for a value in --help: {linear,cos}, N for an integer, X for a number."""
    args = get_args(annotation)
    if name == "device":
        return DEVICES
    if get_origin(annotation) is Literal:
        return "{" + ",".join(args) + "}" if len(args) > 1 else args[0]
    if get_origin(annotation) is Annotated:
        return _placeholder(name, args[0])
    if args:  # a union
        members = [_placeholder(name, member) for member in args if member is not type(None)]
        return "|".join(dict.fromkeys(members))
    return {int: "N", float: "X", Path: "PATH"}.get(annotation, name.upper())


def _group(field: FieldInfo) -> str:
    return field.json_schema_extra["group"]  # type: ignore[index, return-value]


def _help(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    shown = "" if default in ("", None, ()) else f" (default: {_join(default)})"
    return f"{field.description}{' (required)' if field.is_required() else shown}".replace("%", "%%")


def _join(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _version() -> str:
    try:
        return f"s10-resnet {version('s10-resnet')}"
    except PackageNotFoundError:  # the scripts run without an installation, too
        return "s10-resnet, not installed"


def _explain_unknown(name: str, known: Iterable[str], prefix: str) -> str:
    """Returns why a name is none of the known fields, with the one that may be meant."""
    name, known = name.replace("-", "_"), sorted(known)
    if RENAMED.get(name) in known:
        return f"is now called {prefix}{RENAMED[name].replace('_', '-')}"
    if name in REMOVED:
        return f"was removed; {command('sweep')} trains several seeds" if name == "runs" else "was removed"
    close = [OTHER_TOOLS[name]] if OTHER_TOOLS.get(name) in known else get_close_matches(name, known, 1)
    return f"is unknown; did you mean {prefix}{close[0].replace('_', '-')}?" if close else f"is unknown; {HINT}"


def _read_config(settings_class: type[Settings], path: str) -> dict[str, Any]:
    """Returns what a file of settings changes of the defaults of a training, as far as a command has such settings.

    The others keep the defaults of the command: a sweep holds images out although a run does not. The name is
    left out, because each run has a folder of its own.
    """
    try:
        content = read_json(Path(path))
    except ValueError:  # of what can be no path, or an InputError
        raise InputError(f"--config {printable(path)}: must be the config.json of a run") from None
    try:
        values, defaults = dict(TrainConfig.from_json(content)), dict(TrainConfig())
        names = settings_class.model_fields.keys() - settings_class.HIDDEN - {"name"}
        changed = {name: value for name, value in values.items() if name in names and value != defaults[name]}
        return {name: _to_value(settings_class, name, value) for name, value in changed.items()}
    except InputError as error:
        raise InputError(f"--config {printable(path)}: {error}") from None


def _to_value(settings_class: type[Settings], name: str, typed: Any) -> Any:
    """Returns the value of what was typed for a field; here, unlike in Python and JSON, "24" is an integer."""
    annotation = settings_class.model_fields[name].rebuild_annotation()
    try:
        return TypeAdapter(annotation, config=settings_class.model_config).validate_python(typed, strict=False)
    except ValidationError:
        raise bad_value(settings_class, name, _join(typed)) from None


def _parse_choices(word: str) -> list[tuple[str, tuple[str, Any]]]:
    """Returns a label, and a field's name and value, for each of the values in a word."""
    typed_name, equals, values = word.partition("=")
    name, fields = typed_name.replace("-", "_"), TrainConfig.model_fields
    known = [name for name, field in fields.items() if _group(field) in RECIPE_GROUPS]
    if not equals:
        raise InputError(f"VARIANT {printable(word)}: must be NAME=VALUE or NAME=VALUE,VALUE, as in max-lr=2e-3,5e-3")
    if name not in known:
        not_varied = f"cannot be varied; settings of {', '.join(RECIPE_GROUPS)} can"
        why = not_varied if name in fields else _explain_unknown(name, known, prefix="")
        raise InputError(f"VARIANT {printable(word)}: {why}")
    is_tuple = get_origin(fields[name].annotation) is tuple
    choices = []
    for text in values.split(","):
        value = _to_value(TrainConfig, name, text.split(":") if is_tuple else text)
        choices.append((f"{name.replace('_', '-')}={text}", (name, value)))
    return choices
