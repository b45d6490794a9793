"""Starts the scripts, watches them, and finds what they leave behind."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from s10_resnet.utils import serialization
from tests.outcome import outcome

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = "--dataset synthetic --max-train-samples 60 --batch-size 20 --epochs 4 --checkpoint-every-minutes 0.002"
STEPS = 12
TIMEOUT = 480.0
LANES = 2


class Row(NamedTuple):
    """The result of a check: its number, how often it was tried and how often it held, and a figure or remark."""

    number: str
    what: str
    tried: int
    held: int
    remark: str = ""
    problems: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether it held every time, and was tried at all."""
        return self.tried == self.held > 0 and not self.problems


class Ended(NamedTuple):
    """A process that has ended."""

    code: int
    out: str
    err: str
    seconds: float

    def one_line(self, code: int) -> bool:
        """Whether it ended with this code and one line on stderr, which is no traceback."""
        return self.code == code and self.err.count("\n") == 1 and "Traceback" not in self.out + self.err


class Script:
    """A script in a process group of its own, with one thread."""

    def __init__(
        self, lab: Lab, arguments: Iterable[object], *, prefix: Iterable[str] = (), **environment: str
    ) -> None:
        self.start = time.monotonic()
        self.process = subprocess.Popen(
            [*prefix, sys.executable, *map(str, arguments)],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(REPOSITORY),
                "S10_DATA_DIR": "nowhere",
                "TMPDIR": str(lab.temporary),
                **environment,
            },
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            # Whoever runs this in the background has SIGINT ignored, and so would the script.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.lab = lab
        lab.sessions.add(self.process.pid)

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    def wait_until(self, condition: Callable[[], Any], seconds: float = TIMEOUT) -> bool:
        """Waits until something holds; False if the process ended before."""
        end = time.monotonic() + seconds
        while self.running and time.monotonic() < end:
            if condition():
                return True
            time.sleep(0.001)
        return False

    def kill(self) -> None:
        """Kills the main process alone: its workers have to notice."""
        self.process.kill()

    def ended(self) -> Ended:
        """Waits for the end; a process that hangs is killed, which its code tells."""
        try:
            out, err = self.process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            out, err = self.process.communicate()
            self.lab.hung.append(shlex.join(map(str, self.process.args)))
        return Ended(self.process.returncode, out, err, time.monotonic() - self.start)


class Lab:
    """A folder for runs, the seed of everything that is drawn, and the processes that were started."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.temporary = folder / "tmp"  # the scripts'
        self.temporary.mkdir()
        self.sessions: set[int] = set()
        self.hung: list[str] = []
        self.shared_before = self.shared_memory()
        self.references: dict[str, list] = {}

    def draws(self, *key: object) -> random.Random:
        """A generator for one trial, whatever the others draw."""
        return random.Random(repr((self.seed, *key)))

    def train(self, name: str, settings: str = SMALL, *more: object, **options: Any) -> Script:
        """Starts a run."""
        flags = [*shlex.split(settings), *more, "--output-dir", self.folder, "--name", name]
        return Script(self, ["scripts/train.py", *flags], **options)

    def resume(self, run: Path, *more: object, **options: Any) -> Script:
        """Resumes a run."""
        return Script(self, ["scripts/train.py", "--resume", run, *more], **options)

    def train_counted(
        self, name: str, settings: str, *more: object, **options: Any
    ) -> tuple[Script, Callable[[], int]]:
        """Starts a run whose number of steps can be read, even after a kill."""
        steps_file = self.folder / f"{name}.steps"
        steps_file.write_text(f"{0:8d}")  # as long as what replaces it: no reader sees parts of both
        flags = [*shlex.split(settings), *more, "--output-dir", self.folder, "--name", name]
        script = Script(self, ["tests/stress/counted_train.py", *flags], S10_STEPS_FILE=str(steps_file), **options)
        return script, lambda: int(steps_file.read_text())

    def reference(self, settings: str = SMALL) -> list:
        """Returns the outcome of the same run without interruption."""
        if settings not in self.references:
            name = f"reference-{len(self.references)}"
            ended = self.train(name, settings).ended()
            if ended.code:
                raise RuntimeError(f"the reference run failed: {ended.err}")
            self.references[settings] = outcome(self.folder / name)
        return self.references[settings]

    def each(self, trial: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """Runs trials in parallel, one per core."""
        with ThreadPoolExecutor(LANES) as lanes:
            return list(lanes.map(trial, items))

    def orphans(self) -> list[int]:
        """Returns the running processes of those started here, workers included; zombies do not run."""
        left = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) in self.sessions and fields[0] != "Z":
                left.append(int(path.parent.name))
        return left

    def leftovers(self) -> list[str]:
        """Returns temporary and lock files in the runs, temporary folders, and blocks of shared memory."""
        found = [str(path.relative_to(self.folder)) for path in self.folder.rglob(".*")]
        cache = "torchinductor"
        found += [path.name for path in self.temporary.iterdir() if not path.name.startswith(cache)]
        return found + sorted(self.shared_memory() - self.shared_before)

    @staticmethod
    def shared_memory() -> set[str]:
        """Returns the names of torch's blocks."""
        return {path.name for path in Path("/dev/shm").glob("torch_*")}


def saved_step(run: Path) -> int | None:
    """Returns the step of a run's newest checkpoint; None if there is none."""
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        if (run / name).exists():
            return serialization.load(run / name)["state"]["step"]  # a damaged one is an error, not a reason to look on
    return None
