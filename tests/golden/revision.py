"""A revision of the repository, checked out into a folder of its own, and its scripts."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tests.golden.names import spelled
from tests.golden.results import CHECKPOINT, LAST, Result, ScenarioError, read_training

REPOSITORY = Path(__file__).resolve().parents[2]
WORKTREE = "WORKTREE"  # stands for the uncommitted tree
TIMEOUT = 300.0  # seconds, of one script


def exists(name: str) -> bool:
    """Returns whether this is `WORKTREE` or a revision that git knows."""
    command = [
        "git",
        "-C",
        str(REPOSITORY),
        "rev-parse",
        "--verify",
        "--quiet",
        "--end-of-options",
        f"{name}^{{commit}}",
    ]
    return name == WORKTREE or subprocess.run(command, capture_output=True).returncode == 0


def check_out(name: str, folder: Path) -> None:
    """Copies a revision's files into a folder; of the work tree, all that git tracks or does not ignore."""
    git = ["git", "-C", str(REPOSITORY)]
    if name != WORKTREE:
        archive = subprocess.run([*git, "archive", "--format=tar", name], capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        return
    listed = subprocess.run(
        [*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"], capture_output=True, check=True
    )
    for path in map(Path, listed.stdout.decode().split("\0")[:-1]):
        if (REPOSITORY / path).is_file():  # a tracked file may have been deleted
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / path, folder / path)


class Revision:
    """Runs the scripts of one revision.

    Args:
        label: What messages call it, such as ``BASE``.
        name: A git revision, or `WORKTREE`.
        folder: An empty folder, for the checkout and for what the scripts leave.
    """

    def __init__(self, label: str, name: str, folder: Path) -> None:
        self.label, self.checkout, self.work = label, folder / "checkout", folder / "work"
        self.checkout.mkdir(parents=True)
        self.work.mkdir()
        check_out(name, self.checkout)
        # PYTHONPATH decides which package the scripts import: it comes before whatever is installed.
        one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        one_width = {"COLUMNS": "1000", "NO_ALBUMENTATIONS_UPDATE": "1"}
        self.environment = {**os.environ, **one_thread, **one_width, "PYTHONPATH": str(self.checkout)}
        self.trained: dict[str, Result | ScenarioError] = {}
        self.help = cache(lambda script: self.run_plain(script, "--help"))

    def run(self, script: str, *words: str) -> str:
        """Runs a script with words in their old spelling and returns what it prints on stdout."""
        return self.run_plain(script, *(spelled(word, self.help(script)) for word in words))

    def run_plain(self, script: str, *words: str) -> str:
        """Runs a script with words as they are."""
        process = self.start(script, *words)
        try:
            out, error = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            raise ScenarioError(f"{self.label}: {script} took more than {TIMEOUT:.0f} seconds") from None
        finally:
            process.kill()
        if process.returncode:
            raise ScenarioError(f"{self.label}: {script} exited with code {process.returncode}: {last_line(error)}")
        return out

    def start(self, script: str, *words: str) -> subprocess.Popen[str]:
        """Starts a script with words as they are, in the folder of its results."""
        command = [sys.executable, str(self.checkout / "scripts" / script), *words]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=self.work, env=self.environment, text=True, **pipes)

    def folder(self, name: str) -> Path:
        """Returns the folder of the run of this name."""
        return self.work / "outputs" / name

    def train(self, name: str, *words: str) -> Result:
        """Trains and reads what is left; once, as other scenarios may need the same training."""
        return self._once(name, lambda: self.run("train.py", *words, "--name", name))

    def train_stopped_and_resumed(self, name: str, *words: str) -> Result:
        """Trains, sends SIGTERM after a step of the first epoch, and goes on with ``--resume``; once."""

        def run() -> None:
            self._stop_early(name, *words)
            self.run("train.py", "--resume", str(self.folder(name)))

        return self._once(name, run)

    def _stop_early(self, name: str, *words: str) -> None:
        every_step = ("--checkpoint-every-minutes", "0.0001")
        words = tuple(spelled(word, self.help("train.py")) for word in (*words, *every_step, "--name", name))
        process = self.start("train.py", *words)
        try:
            deadline = time.monotonic() + TIMEOUT
            while process.poll() is None and time.monotonic() < deadline:
                if any(self.folder(name).rglob(CHECKPOINT)):
                    process.send_signal(signal.SIGTERM)
                    break
                time.sleep(0.01)
            _, error = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            raise ScenarioError(f"{self.label}: train.py did not stop on SIGTERM") from None
        finally:
            process.kill()
        # A checkpoint without a row of the history is one from the middle of the first epoch.
        rows = [row for path in self.folder(name).rglob("*.csv") for row in path.read_text().splitlines()[1:]]
        if process.returncode == 0 or rows or not any(self.folder(name).rglob(CHECKPOINT)):
            raise ScenarioError(
                f"{self.label}: train.py was not stopped within the first epoch (exit code {process.returncode}, "
                f"{len(rows)} epochs): {last_line(error)}"
            )

    def _once(self, name: str, run: Callable[[], object]) -> Result:
        """Makes a training of this name, reads it, and deletes its checkpoints: a dozen runs would leave gigabytes."""
        if name not in self.trained:
            try:
                run()
                self.trained[name] = read_training(self.folder(name))
            except ScenarioError as error:
                self.trained[name] = error
            for path in self.folder(name).rglob("*.pt"):
                if path.name != LAST:
                    path.unlink()
        result = self.trained[name]
        if isinstance(result, ScenarioError):
            raise result
        return result


def last_line(error: str) -> str:
    """Returns the last line of what a script said on stderr."""
    return (error.strip().splitlines() or ["nothing on stderr"])[-1]
