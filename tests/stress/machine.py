"""Failures of the machine, and what all the checks leave behind."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tests.outcome import outcome
from tests.stress.lab import SMALL, Ended, Lab, Row, Script, saved_step


def machine(lab: Lab) -> Iterator[Row]:
    """A full disk, a full /dev/shm, a killed worker, a killed rank."""
    lab.reference()
    results = lab.each(lambda check: check(lab), [_full_disk, _full_shared_memory, _killed_worker])
    results.append(_killed_rank(lab))
    problems = [problem for problem in results if problem]
    what = "full disk, killed worker, killed rank: one line, resumed bit-identical; full /dev/shm: the same result"
    yield Row("12", what, len(results), len(results) - len(problems), "", tuple(problems))


def _resumes(lab: Lab, run: Path, wanted: list) -> str:
    end = lab.resume(run, "--workers", 0).ended()
    return "" if end.code == 0 and outcome(run) == wanted else f"{run.name}: {end.code} {end.err[-300:]}"


def _full_disk(lab: Lab) -> str:
    """A disk that only this process sees, with space for two checkpoints and not for a third."""
    run = lab.folder / "disk" / "run"
    run.parent.mkdir()
    kept = lab.folder / "kept"
    command = (
        f"mount -t tmpfs -o size=195m none {run.parent} && "
        f'"$0" scripts/train.py {SMALL} --output-dir {run.parent} --name run; code=$?; cp -r {run} {kept}; exit $code'
    )
    end = _in_namespace(lab, command)
    if not end.one_line(1) or "No space left on device; free some space" not in end.err:
        return f"full disk: exit code {end.code}: {end.err[-300:]}"
    if not saved_step(kept) or list(kept.glob(".*")):
        return "full disk: no checkpoint, or a temporary file"
    return _resumes(lab, kept, lab.reference())


def _full_shared_memory(lab: Lab) -> str:
    """A /dev/shm without space for the batches of two workers: none is used, with a warning."""
    command = (
        "mount -t tmpfs -o size=160k none /dev/shm && "
        f'"$0" scripts/train.py {SMALL} --workers 2 --output-dir {lab.folder} --name shm'
    )
    end = _in_namespace(lab, command)
    if end.code or "/dev/shm has no room for the batches of 2 workers: 0 are used" not in end.err:
        return f"full /dev/shm: exit code {end.code}: {end.err[-300:]}"
    return "" if outcome(lab.folder / "shm") == lab.reference() else "full /dev/shm: a different result"


def _in_namespace(lab: Lab, command: str) -> Ended:
    rights = [] if os.geteuid() == 0 else ["--map-root-user"]
    script = Script(lab, [], prefix=["unshare", "--mount", *rights, "sh", "-c", command])
    return script.ended()


def _killed_worker(lab: Lab) -> str:
    (lab.folder / "worker-tmp").mkdir()
    # A folder of its own: nobody can remove the sockets of a worker that is killed itself.
    script, steps = lab.train_counted("worker", SMALL, "--workers", 2, TMPDIR=str(lab.folder / "worker-tmp"))
    script.wait_until(lambda: steps() >= 4)
    children = Path(f"/proc/{script.process.pid}/task/{script.process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    end = script.ended()
    if not end.one_line(1) or "a worker was killed" not in end.err or not saved_step(lab.folder / "worker"):
        return f"killed worker: exit code {end.code}: {end.err[-300:]}"
    return _resumes(lab, lab.folder / "worker", lab.reference())


def _killed_rank(lab: Lab) -> str:
    """torchrun restarts both ranks; the result is that of two ranks that were not interrupted."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    runs, elsewhere = [lab.folder / "ranks", lab.folder / "rank-killed"], lab.folder / "ranks-tmp"
    elsewhere.mkdir()  # for torchrun's own logs
    for run in runs:
        flags = [*shlex.split(SMALL), "--output-dir", lab.folder, "--name", run.name]
        script = Script(lab, [*launch, "scripts/train.py", *flags], TMPDIR=str(elsewhere))
        if run is runs[1]:
            script.wait_until(lambda: (run / "checkpoint.pt").exists())  # noqa: B023
            ranks = Path(f"/proc/{script.process.pid}/task/{script.process.pid}/children").read_text().split()
            lab.sessions |= set(map(int, ranks))  # each has a session of its own
            os.kill(int(ranks[-1]), signal.SIGKILL)
        end = script.ended()
        if end.code or "Traceback" in end.out + end.err:
            return f"killed rank: exit code {end.code}: {end.err[-300:]}"
    return "" if outcome(runs[0]) == outcome(runs[1]) else "killed rank: a different result"


def remains(lab: Lab) -> Iterator[Row]:
    """Processes and files that the checks before have left behind."""
    end = time.monotonic() + 15  # a worker checks for its parent every 5 s
    while lab.orphans() and time.monotonic() < end:
        time.sleep(0.5)
    found = {"orphans": lab.orphans(), "temporary files": lab.leftovers(), "hangs": lab.hung}
    problems = tuple(f"{what}: {left}" for what, left in found.items() if left)
    remark = ", ".join(f"{what}: {len(left)}" for what, left in found.items())
    started = len(lab.sessions)
    yield Row(
        "11",
        f"{started} processes: none left running, no temporary file, none hung",
        started,
        started - len(problems),
        remark,
        problems,
    )
