"""The environment of a run: versions, git commit, hardware, optional packages."""

from __future__ import annotations

import importlib
import os
import platform
import re
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from s10_resnet.errors import InputError


def collect_environment(device: torch.device) -> dict[str, Any]:
    """Versions, the git commit of a checkout that the package runs from (else None), and the machine."""
    packages = ("s10-resnet", "torch", "torchvision", "albumentations", "torch-lr-finder", "numpy")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "git_commit": _git_commit(Path(__file__).resolve().parents[2]),
        "hardware": {
            "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "cpu": _cpu_name(),
            "threads": torch.get_num_threads(),
            "system": f"{platform.system()} {platform.machine()}",
        },
    }


def require_optional(package: str, extra: str, flag: str) -> ModuleType:
    """Imports a package of the optional dependency group ``extra`` in ``pyproject.toml``.

    Raises:
        InputError: If it is not installed; the message starts with ``flag`` and says what to install.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        name = package.split(".")[0]
        if error.name is None or error.name.split(".")[0] != name:
            raise
        raise InputError(f"{flag}: needs {name}, which is not installed: pip install '.[{extra}]'") from None


@cache
def _git_commit(checkout: Path) -> str | None:
    if not (checkout / ".git").exists():
        return None
    # In a git hook, GIT_DIR and the like name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        ended = subprocess.run(command, env=environment, capture_output=True, check=True)
        return ended.stdout.decode("ascii").strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", path.read_text("utf-8", "replace")) if path.exists() else []
    return names[0] if names else platform.processor() or platform.machine()
