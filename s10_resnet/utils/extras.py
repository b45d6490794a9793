"""Packages that only some commands need and a plain installation does without."""

from __future__ import annotations

import importlib
from types import ModuleType

from s10_resnet.errors import InputError


def need(package: str, extra: str, flag: str) -> ModuleType:
    """Imports a package of one of the optional dependencies in ``pyproject.toml``.

    Args:
        package: What to import.
        extra: The group of dependencies that it is in.
        flag: What it is needed for, as it was typed.

    Raises:
        InputError: If it is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != package.split(".")[0]:
            raise
        raise InputError(
            f"{flag}: needs {package.split('.')[0]}, which is not installed: pip install '.[{extra}]'"
        ) from None
