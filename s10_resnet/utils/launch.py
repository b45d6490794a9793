"""How this process was started: by which launcher, such as ``torchrun``, and by which command. Without torch."""

from __future__ import annotations

import math
import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from s10_resnet.errors import InputError


class LaunchEnv(NamedTuple):
    """The place of this process among those that were launched together."""

    rank: int = 0  # index of this process among all
    local_rank: int = 0  # index of this process among those of this machine
    world_size: int = 1  # number of processes
    restart_count: int = 0  # how often the launcher has restarted the processes
    local_world_size: int = 1  # number of processes on this machine


def launch_env() -> LaunchEnv:
    """Reads ``RANK``, ``LOCAL_RANK``, ``WORLD_SIZE``, ``LOCAL_WORLD_SIZE`` and ``TORCHELASTIC_RESTART_COUNT``.

    A ``WORLD_SIZE`` that is unset, empty or 1 means a single process, whatever the rank variables say. Without
    ``LOCAL_RANK`` and ``LOCAL_WORLD_SIZE``, all processes are taken to be on one machine.

    Raises:
        InputError: If a variable is not an integer or out of range, or ``RANK`` is missing.
    """
    world_size = _integer("WORLD_SIZE", default=1, low=1)
    restart_count = _integer("TORCHELASTIC_RESTART_COUNT", default=0, low=0)
    if world_size == 1:
        return LaunchEnv(restart_count=restart_count)
    rank = _integer("RANK", default=None, low=0, high=world_size - 1)
    local_rank = _integer("LOCAL_RANK", default=rank, low=0, high=rank)
    local_world_size = _integer("LOCAL_WORLD_SIZE", default=world_size, low=local_rank + 1, high=world_size)
    return LaunchEnv(rank, local_rank, world_size, restart_count, local_world_size)


def _integer(name: str, *, default: int | None, low: int, high: float = math.inf) -> int:
    text = os.environ.get(name, "")
    if not text and default is not None:
        return default
    with suppress(ValueError):
        if low <= int(text) <= high:
            return int(text)
    allowed = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
    raise InputError(f"{name}={text}: must be an integer {allowed} in the environment, as torchrun sets it")


def command(name: str, *arguments: object) -> str:
    """Returns how to run another command, such as ``find_lr``, in the way that this process was run, for a shell."""
    program = Path(sys.argv[0])
    words = [f"s10-{name.replace('_', '-')}"]
    if program.name == "__main__.py":
        words = ["python", "-m", "s10_resnet", name]
    elif program.suffix == ".py" and program.with_name(f"{name}.py").is_file():
        words = ["python", str(program.with_name(f"{name}.py"))]
    return shlex.join([*words, *map(str, arguments)])
