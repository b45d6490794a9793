"""Measures on a CUDA GPU, in one command, what a CPU cannot show: ``python scripts/benchmark.py --gpu-report``.

Whole runs as a user starts them, in processes of their own; a part that fails is recorded, and the others go on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from s10_resnet.arguments import to_flags
from s10_resnet.config import BenchmarkConfig
from s10_resnet.errors import EnvironmentFailure, InputError
from s10_resnet.utils import serialization
from s10_resnet.utils.console import logger
from s10_resnet.utils.environment import collect_environment
from s10_resnet.utils.io import atomic_write, create_run_dir, read_csv, read_json, write_json
from s10_resnet.utils.runtime import resolve_runtime

TIMING_COLUMNS = ("train_seconds", "eval_seconds", "images_per_second")  # columns of history.csv
POLL_SECONDS = 0.02
SHARED_SETTINGS = ("dataset", "data_dir", "device", "max_train_samples", "batch_size")
STAGES = "stages beside the baseline script"
RESUME = "3 epochs, deterministic, stopped and resumed"
# Two minutes on two cores, most of them for the start of fifteen processes.
DRY_RUN = {"quick": False, "dataset": "synthetic", "max_train_samples": 64, "batch_size": 16, "epochs": 2, "repeats": 1}


def create_gpu_report(config: BenchmarkConfig) -> dict[str, Any]:
    """Measures whole runs, data loading, idle time, precisions and resuming, each within a limit of time.

    With ``quick`` a dry run: the same on any device but for fp16, with a few images of the synthetic data set.

    Returns:
        The content of ``gpu-report.json``, which is written after every part, as is ``gpu-report.md``: ``parts``, each
        with ``title``, ``command``, ``seconds``, and ``results`` or ``error``; ``dry_run``; versions and hardware.

    Raises:
        InputError: Without a CUDA GPU, unless it is a dry run; for a name that exists.
        ShutdownRequested: After Ctrl-C or SIGTERM.
    """
    dry_run = config.quick
    if dry_run:
        config = config.replace(**DRY_RUN)
    device = resolve_runtime(config.device).device
    if device.type != "cuda" and not dry_run:
        raise InputError(f"--gpu-report: must be on a CUDA GPU, not {device}; with --quick it does a dry run anywhere")
    run_dir = create_run_dir(config.output_dir, config.name, "gpu-report")
    environment = {"device": str(device), "cuda": torch.version.cuda, **collect_environment(device)}
    content = {"dry_run": dry_run, "settings": config.to_json(), **environment, "parts": []}
    shared = {name: getattr(config, name) for name in SHARED_SETTINGS}
    with tempfile.TemporaryDirectory() as work_dir:
        for title, command, flags, limit in list_commands(config, on_cuda=device.type == "cuda"):
            output_dir = run_dir if command == "benchmark" else Path(work_dir)  # the benchmark's files stay
            name = title.replace(" ", "-").replace(",", "")
            args = [command, *to_flags({**shared, **flags, "output_dir": output_dir, "name": name})]
            part: dict[str, Any] = {"title": title, "command": " ".join(["python -m s10_resnet", *args])}
            start = time.monotonic()
            try:
                part["results"] = run_command(args, output_dir / name, limit)
                if title == RESUME:
                    part["results"] |= compare_resumed(args, output_dir / name, limit)
            except Exception as error:  # whatever it is, the other parts go on
                part["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            part["seconds"] = time.monotonic() - start
            content["parts"].append(part)
            write_json(run_dir / "gpu-report.json", content)
            atomic_write(run_dir / "gpu-report.md", to_markdown(content).encode())
            logger.info(f"{part['seconds']:6.1f} s  {title}{_outcome(part)}")
    logger.info(f"see {run_dir / 'gpu-report.md'}")
    return content


def _outcome(part: dict[str, Any]) -> str:
    if "error" in part:
        return ": FAILED"
    results = part["results"]
    if "final_eval_accuracy" not in results:
        return ""
    return f": {results['final_eval_accuracy']:.2%}, {results['train_seconds']:.1f} s of training steps"


def list_commands(config: BenchmarkConfig, *, on_cuda: bool) -> list[tuple[str, str, dict[str, Any], int]]:
    """Returns title, command, flags and limit in seconds of each part, the most important first."""
    epochs = config.epochs
    on_device: dict[str, Any] = {"epochs": epochs, "augment_on": "device"}
    workers = "auto" if on_cuda else 2  # auto means none on a CPU
    fp16 = [("2 epochs, fp16", "train", {"epochs": 2, "precision": "fp16"}, 90)]
    return [
        (f"{epochs} epochs, augmentation on the device", "train", on_device, 180),
        (f"{epochs} epochs, seed 1", "train", {**on_device, "seed": 1}, 180),
        (STAGES, "benchmark", {"epochs": min(epochs, 2), "repeats": config.repeats, "profile": True}, 240),
        (f"{epochs} epochs, workers", "train", {"epochs": epochs, "augment_on": "cpu", "workers": workers}, 180),
        ("2 epochs, bf16", "train", {"epochs": 2, "precision": "bf16"}, 90),
        *(fp16 if on_cuda else []),
        (RESUME, "train", {"epochs": 3, "deterministic": True}, 60),
    ]


def run_command(args: list[str], run_dir: Path, limit: int) -> dict[str, Any]:
    """Runs a command. Returns its results, and what it wrote to stdout and stderr."""
    stdout, stderr = run_module(["s10_resnet", *args], limit)
    results = read_json(run_dir / ("benchmark.json" if args[0] == "benchmark" else "summary.json"))
    return {**results, "stdout": stdout, "stderr": stderr[-1000:]}


def compare_resumed(args: list[str], uninterrupted: Path, limit: int) -> dict[str, Any]:
    """Compares a run with the same one after SIGTERM stopped it in its second epoch and it was resumed."""
    stopped = uninterrupted.with_name("stopped")
    deadline = time.monotonic() + limit
    with start_module(["s10_resnet", *args, "--name", stopped.name]) as process:
        while process.poll() is None and not (stopped / "history.csv").exists():  # after the first epoch
            if time.monotonic() > deadline:
                raise EnvironmentFailure("the first epoch was not over in time")
            time.sleep(POLL_SECONDS)
        time.sleep(read_csv(uninterrupted / "history.csv")[-1]["train_seconds"] / 2)  # into the second
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=limit)
    if process.returncode != 128 + signal.SIGTERM:
        raise EnvironmentFailure(f"exit code {process.returncode} after SIGTERM, not {128 + signal.SIGTERM}")
    step = serialization.load(stopped / "checkpoint.pt")["state"]["step"]
    run_module(["s10_resnet", "train", "--resume", str(stopped)], limit)
    before, after = (serialization.load(path / "last.pt")["model"] for path in (uninterrupted, stopped))
    metrics = [
        [{k: v for k, v in row.items() if k not in TIMING_COLUMNS} for row in read_csv(path / "history.csv")]
        for path in (uninterrupted, stopped)
    ]
    return {
        "stopped_after_step": step,
        "weights_bit_identical": all(before[k].numpy().tobytes() == after[k].numpy().tobytes() for k in before),
        "largest_difference": max((before[k].double() - after[k].double()).abs().max().item() for k in before),
        "metrics_equal": metrics[0] == metrics[1],
    }


def to_markdown(content: dict[str, Any]) -> str:
    """Returns the page of a report."""
    settings, hardware = content["settings"], content["hardware"]
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    blocks = [
        f"# GPU report{' (dry run)' if content['dry_run'] else ''}",
        f"{hardware['accelerator'] or content['device']}; {hardware['cpu']}; {hardware['system']}. "
        f"{versions}, CUDA {content['cuda']}. Commit {content['git_commit']}. Data set: {settings['dataset']}. "
        f"Each run once (n = 1); stages: medians of {settings['repeats']}.",
    ]
    for part in content["parts"]:
        blocks += [f"## {part['title']}", f"    {part['command']}"]
        if "error" in part:
            blocks.append(f"**Failed** after {part['seconds']:.0f} s: {part['error']}")
            continue
        results = part["results"]
        blocks += [f"{part['seconds']:.1f} s in all. It printed:", f"```\n{results['stdout'].strip()}\n```"]
        if results["stderr"]:
            blocks.append(f"It warned: {' '.join(results['stderr'].split())}")
        if "stopped_after_step" in results:
            same = results["weights_bit_identical"] and results["metrics_equal"]
            blocks.append(
                f"Stopped after step {results['stopped_after_step']} and resumed: "
                f"{'bit-identical' if same else '**NOT the same**'}. Weights differ by up to "
                f"{results['largest_difference']:.3g}; equal metrics: {results['metrics_equal']}."
            )
    return "\n\n".join(blocks) + "\n"


def run_module(args: list[str], timeout: float | None = None) -> tuple[str, str]:
    """Runs ``python -m`` with these arguments to its end, and returns what it wrote to stdout and stderr.

    Raises:
        EnvironmentFailure: If it fails.
        subprocess.TimeoutExpired: If it takes more than ``timeout`` seconds.
    """
    with start_module(args) as process:
        stdout, stderr = process.communicate(timeout=timeout)
    if process.returncode:
        reason = stderr.strip()[-300:]
        raise EnvironmentFailure(f"{' '.join(args[:2])}: ended with exit code {process.returncode}: {reason}")
    return stdout, stderr


@contextmanager
def start_module(args: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Starts ``python -m`` with these arguments. At the end of the block, it and all that it started are killed.

    Its output goes to pipes, unless ``options`` of `subprocess.Popen` say otherwise. Signals to the process group, such
    as Ctrl-C, do not reach it.
    """
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    command = [sys.executable, "-m", *args]
    with subprocess.Popen(command, text=True, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None and hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()  # on Windows, which has no process groups
