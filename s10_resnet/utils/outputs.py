"""A run's folder: made once, never overwritten, its text files, and where the run came from."""

from __future__ import annotations

import csv
import io
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import torch

from s10_resnet.errors import InputError
from s10_resnet.utils.io import write_whole


def make_run_folder(output_dir: Path, name: str, prefix: str) -> Path:
    """Creates the folder of one run.

    Args:
        output_dir: Folder of all runs; created if need be.
        name: The run's own folder; if empty, ``prefix`` with date and time.
        prefix: What default names begin with.

    Raises:
        InputError: If the named folder exists, or none can be made.
    """
    stamp = f"{prefix}-{datetime.now():%Y%m%d-%H%M%S}"
    candidates = [name] if name else (stamp if i == 1 else f"{stamp}-{i}" for i in count(1))
    for candidate in candidates:
        try:
            (output_dir / candidate).mkdir(parents=True)
            return output_dir / candidate
        except FileExistsError:
            if not output_dir.is_dir():
                raise InputError(f"--output-dir {output_dir}: must be a folder, and a file has that name") from None
        except OSError as error:
            raise InputError(
                f"--output-dir {output_dir}: must be a folder that can be written to ({error.strerror})"
            ) from None
    raise InputError(f"--name {name}: must be a new name; {output_dir / name} exists and is not overwritten")


def substitute(name: str) -> str:
    """The name of a run on the stand-in that was to be one on CIFAR-10: nobody is to take it for that."""
    return f"synthetic-{name}"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes readable JSON; a NaN or an infinity, which JSON has no word for, is a `ValueError`."""
    write_whole(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a CSV file with a head, whole; the rows have the same keys."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: For a file that is missing or is not JSON.
    """
    text = _read(path, "is not JSON")
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise InputError(f"{path}: is not JSON") from None


def read_rows(path: Path) -> list[dict[str, float]]:
    """Reads a CSV file of `write_rows`.

    Raises:
        InputError: For a file that is missing, or that holds anything but a head and rows of as many numbers.
    """
    text = _read(path, "is not a table of numbers under a head")
    try:
        head, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        return [dict(zip(head, map(float, row), strict=True)) for row in rows]
    except (ValueError, csv.Error):
        raise InputError(f"{path}: is not a table of numbers under a head") from None


def provenance(device: torch.device) -> dict[str, Any]:
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


def _git_commit(checkout: Path) -> str | None:
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _read(path: Path, otherwise: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: {otherwise}") from None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
