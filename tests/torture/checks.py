"""The checks, in the order of the table."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shlex
import shutil
import signal
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from s10_resnet import checkpoint, synthetic
from s10_resnet.batches import AugmentedBatches, Plans, running, train_loader
from s10_resnet.checkpoint import CheckpointError
from s10_resnet.config import Config, flag
from s10_resnet.data import Split
from tests.outcome import outcome
from tests.torture.lab import REPOSITORY, SMALL, STEPS, Ended, Lab, Row, Script, whole


def kills(lab: Lab, trials: int) -> Iterator[Row]:
    """SIGKILL at any moment of a run, then --resume: the same bits; how much work is lost."""
    reference, lost = lab.reference(), []

    def trial(number: int) -> str:
        draws, name = lab.draws("kills", number), f"kill-{number}"
        while True:  # until a kill came before the end
            run = lab.folder / name
            script, steps = lab.train_noted(name, SMALL, "--workers", draws.choice([0, 2]))
            after = draws.randrange(STEPS + 1)
            script.wait_until(lambda: (run / "config.json").exists() and steps() >= after)  # noqa: B023
            script.wait_until(lambda: False, draws.uniform(0, 0.6))
            script.kill()
            if script.ended().code == -signal.SIGKILL:
                break
            name += "-again"
        lost.append(steps() - (whole(run) or 0))
        if draws.random() < 0.3:  # and once more, wherever it has got to
            script = lab.resume(run)
            script.wait_until(lambda: False, draws.uniform(0, 8))
            script.kill()
            script.ended()
        ended = lab.resume(run, "--workers", draws.choice([0, 1, 2])).ended()
        if ended.code:
            return f"{name}: exit code {ended.code}: {ended.err.strip()}"
        return "" if outcome(run) == reference else f"{name}: other bits"

    problems = [problem for problem in lab.each(trial, range(trials)) if problem]
    what = "SIGKILL at a random moment, resumed: all bits equal to an uninterrupted run's"
    yield Row("1", what, trials, trials - len(problems), "", tuple(problems))
    allowed = STEPS // 4 + 1  # an epoch ends with a checkpoint; and there is one every 1.2 s besides
    what = f"steps lost by a kill at a random moment, of {STEPS}; at most an epoch's and one"
    yield Row("3", what, trials, sum(steps <= allowed for steps in lost), f"most: {max(lost)}")


def kills_while_writing(lab: Lab, trials: int) -> Iterator[Row]:
    """SIGKILL while a checkpoint is being written: there is always one that can be read."""
    settings = SMALL.replace("--epochs 4", "--epochs 40").replace("0.02", "0.000001")  # one a step
    lanes = 2 if trials > 1 else 1

    def lane(number: int) -> tuple[int, list[str]]:
        draws, name, landed, problems = lab.draws("writes", number), f"write-{number}", 0, []
        run = lab.folder / name
        script = lab.train(name, settings)
        for _ in range(3 * trials):
            begun = run / ".checkpoint.pt.tmp"
            started = script.wait_until(begun.exists)
            time.sleep(draws.uniform(0, 0.12))
            script.kill()
            script.ended()
            if not started:
                problems.append(f"{name}: ended by itself")
                break
            landed += any(run.glob(".checkpoint*.tmp"))  # the file was not yet whole, or not yet in its place
            try:
                whole(run)
            except CheckpointError as error:
                problems.append(str(error))
            if landed * lanes >= trials:
                break
            script = lab.resume(run)
        ended = lab.resume(run, *shlex.split("--checkpoint-every-minutes 5")).ended()
        if ended.code:
            problems.append(f"{name}: exit code {ended.code}: {ended.err.strip()}")
        return landed, problems

    results = lab.each(lane, range(lanes))
    landed, problems = sum(count for count, _ in results), [text for _, texts in results for text in texts]
    outcomes = [outcome(lab.folder / f"write-{number}") for number in range(lanes)]
    if any(result != outcomes[0] for result in outcomes):
        problems.append("the runs that were killed so often came to other bits")
    remark = "and the runs came to their end"
    yield Row(
        "2",
        "SIGKILL in the middle of a checkpoint's write: a whole one is there",
        landed,
        landed - len(problems),
        remark,
        tuple(problems),
    )


def damage(lab: Lab, flips: int, cuts: int) -> Iterator[Row]:
    """Single bits flipped and ends cut off."""
    lab.reference()
    good = (lab.folder / "reference-0" / "checkpoint.pt").read_bytes()
    draws, path = lab.draws("damage"), lab.folder / "damaged.pt"

    def refused(content: bytes) -> bool:
        path.write_bytes(content)
        try:
            checkpoint.load(path)
        except CheckpointError as error:
            return str(path) in str(error)
        return False

    def flipped() -> bytes:
        content, bit = bytearray(good), draws.randrange(8 * len(good))
        content[bit // 8] ^= 1 << bit % 8
        return bytes(content)

    held = [refused(flipped()) for _ in range(flips)] + [
        refused(good[: draws.randrange(len(good))]) for _ in range(cuts)
    ]
    path.unlink()
    yield Row(
        "4",
        f"checkpoints with one bit flipped ({flips}) or cut short ({cuts}): refused by name",
        len(held),
        sum(held),
        f"{len(good) / 1e6:.0f} MB each",
    )


class Hostile:
    """Runs code when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return exec, (f"open({str(self.witness)!r}, 'w').close()",)


def malice(lab: Lab) -> Iterator[Row]:
    """Files made to run code, in every place where the scripts read one."""
    lab.reference()
    witness, root = lab.folder / "EXECUTED", lab.folder / "malice"
    code = Hostile(witness)

    def run_with(name: str, change: Callable[[Path], None]) -> list[object]:
        run = root / name
        run.mkdir(parents=True)
        shutil.copy(lab.folder / "reference-0" / "config.json", run)
        change(run)
        return ["scripts/train.py", "--resume", run]

    def sealed(content: dict) -> Callable[[Path], None]:
        return lambda run: checkpoint.save(run / "checkpoint.pt", content)

    def plain(run: Path) -> None:
        torch.save({"state": code}, run / "checkpoint.pt")

    def bare(run: Path) -> None:
        body = pickle.dumps(code)
        (run / "checkpoint.pt").write_bytes(body + checkpoint._seal(body))

    def legacy(run: Path) -> None:
        torch.save({"state": code}, run / "raw.pt", _use_new_zipfile_serialization=False)
        body = (run / "raw.pt").read_bytes()
        (run / "checkpoint.pt").write_bytes(body + checkpoint._seal(body))

    def settings(content: str | bytes) -> Callable[[Path], None]:
        return lambda run: (run / "config.json").write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )

    def data_with(name: str) -> list[object]:
        folder = root / f"data-{name}" / "cifar-10-batches-py"
        folder.mkdir(parents=True)
        for file in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
            (folder / file).write_bytes(pickle.dumps(code if file == name else {}))
        return ["scripts/train.py", "--data-dir", folder.parent, "--output-dir", root / "out"]

    def archive_with(name: str, member: tarfile.TarInfo) -> list[object]:
        folder = root / f"archive-{name}"
        folder.mkdir(parents=True)
        with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
            archive.addfile(member)
        return ["scripts/find_lr.py", "--data-dir", folder, "--output-dir", root / "out"]

    climbing, linked = tarfile.TarInfo("../../EXECUTED"), tarfile.TarInfo("cifar-10-batches-py")
    linked.type, linked.linkname = tarfile.SYMTYPE, str(lab.folder)
    whole_config = json.loads((lab.folder / "reference-0" / "config.json").read_text())
    commands = {
        "a checkpoint with code, as torch writes it": run_with("plain", plain),
        "the same, sealed": run_with("sealed", sealed({"state": code})),
        "code among the settings of a checkpoint": run_with(
            "settings", sealed({"state": {}, "max_lr": 0.1, "config": code, "dataset": "synthetic", "environment": {}})
        ),
        "a bare pickle, sealed": run_with("bare", bare),
        "torch's old format, sealed": run_with("legacy", legacy),
        "settings that are code": run_with("config-code", settings("__import__('os').system('touch EXECUTED')")),
        "settings that are a pickle": run_with("config-pickle", settings(pickle.dumps(code))),
        "settings that lead out of the folder": run_with(
            "config-name", settings(json.dumps({**whole_config, "name": "../../x"}))
        ),
        "settings nested without end": run_with("config-deep", settings("[" * 100_000)),
        "settings with a field more": run_with(
            "config-more", settings(json.dumps({**whole_config, "__class__": "os.system"}))
        ),
        **{f"{name} with code": data_with(name) for name in ("data_batch_1", "test_batch", "batches.meta")},
        "an archive that climbs out": archive_with("climbing", climbing),
        "an archive that is a link": archive_with("linked", linked),
    }
    ends = lab.each(lambda command: Script(lab, command).ended(), commands.values())
    problems = [
        f"{what}: exit code {end.code}: {end.err[-300:]}"
        for what, end in zip(commands, ends, strict=True)
        if not end.one_line(2)
    ]
    problems += [
        f"executed: {path}"
        for path in (witness, REPOSITORY / "EXECUTED", lab.folder.parent / "EXECUTED")
        if path.exists()
    ]
    problems += ["a run folder was made"] if (root / "out").exists() else []
    shutil.rmtree(root)
    yield Row(
        "5",
        "malicious checkpoints, settings, data files and archives: one line, nothing run",
        len(ends),
        len(ends) - len(problems),
        "executed: 0" if not witness.exists() else "executed",
        tuple(problems),
    )


def tampering(lab: Lab, source: Path | None) -> Iterator[Row]:
    """One byte of each data file changed, or cut off."""
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]

    def refused(item: tuple[str, str]) -> str:
        name, how = item
        folder = lab.folder / f"tampered-{name}-{how}" / "cifar-10-batches-py"
        folder.mkdir(parents=True)
        for file in names:
            if source is None:
                (folder / file).write_bytes(file.encode())  # without the real ones, all are wrong: the first is named
            elif file != name:
                (folder / file).symlink_to(source / "cifar-10-batches-py" / file)
            else:
                content = bytearray((source / "cifar-10-batches-py" / file).read_bytes())
                if how == "changed":
                    content[len(content) // 2] ^= 1
                (folder / file).write_bytes(content if how == "changed" else content[:-1])
        quick = shlex.split("--limit 60 --batch-size 20 --epochs 1")  # if it is not refused
        command = ["scripts/train.py", *quick, "--data-dir", folder.parent, "--output-dir", lab.folder / "out"]
        end = Script(lab, command).ended()
        shutil.rmtree(folder.parent)
        named = f"{name} is not the official file" if source else "data_batch_1 is not the official file"
        return "" if end.one_line(2) and named in end.err else f"{name} {how}: {end.err[-300:]}"

    items = [(name, how) for name in names for how in ("changed", "cut short")]
    problems = [problem for problem in lab.each(refused, items) if problem]
    what = "data files with one byte changed or missing: refused by name" + ("" if source else " (no real data here)")
    yield Row("6", what, len(items), len(items) - len(problems), "", tuple(problems))


BY_HAND = """
--no-such-flag
stray
--epochs
--epoch 3
--no-epochs
--flip=yes
--optimizer-betas 0.9
--optimizer-betas 0.9 0.99 0.999
--max-lr fast
--max-lr -1e-3
--max-lr 1e-400
--workers some
--workers -1
--finder-start-lr 1 --finder-end-lr 0.1
--name ../x
--name .x
--name a/b
--device cuda:x
--device cuda:77
--precision fp16 --device cpu
--seed 4294967296
--limit 9
--data-dir README.md
--dataset synthetic --batch-size 10001
--dataset synthetic --val-size 10000
--dataset synthetic --limit 10 --batch-size 11
--dataset synthetic --output-dir README.md/x
--resume
--resume ''
--resume /nowhere
--resume README.md
--resume s10_resnet
""".strip().splitlines()


def bad_command_lines(lab: Lab, scripts: tuple[str, ...] = ("train.py", "find_lr.py")) -> Iterator[Row]:
    """Values that no flag takes, made from the flags' kinds, and some by hand."""
    values = {
        "whole": ["x", "1.5", "-1", "1e3", "", "9" * 30],
        "number": ["x", "nan", "inf", "-1", "1,5", ""],
        "word": ["?", "no such word", "\u0130"],
    }

    def kind(item: object) -> str:
        parse = item.metadata["knob"].parse
        return {int: "whole", float: "number"}.get(parse, "word" if parse is str else "")

    generated = [
        ["--dataset", "synthetic", flag(item.name), *[value] * (item.metadata["knob"].count or 1)]
        for item in fields(Config)
        for value in values.get(kind(item), [])
        if (item.name, value) not in (("limit", "9" * 30), ("name", ""))  # these are good
    ]
    by_hand = [shlex.split(line) for line in BY_HAND]
    commands = [(script, line) for script in scripts for line in generated + by_hand]

    def trial(item: tuple[int, tuple[str, list[str]]]) -> str:
        number, (script, line) = item
        out = [] if "--output-dir" in line else ["--output-dir", lab.folder / f"bad-{number}"]
        end = Script(lab, [f"scripts/{script}", *out, *line]).ended()
        if (lab.folder / f"bad-{number}").exists():
            return f"{script} {shlex.join(line)}: left a folder"
        kind = "Traceback" if "Traceback" in end.err else f"exit code {end.code}"
        return "" if end.one_line(2) and not end.out else f"{script} {shlex.join(line)}: {kind}: {end.err[-200:]}"

    problems = [problem for problem in lab.each(trial, enumerate(commands)) if problem]
    what = "bad command lines: one line, exit code 2, no folder"
    yield Row(
        "7",
        what,
        len(commands),
        len(commands) - len(problems),
        f"tracebacks: {sum('Traceback' in p for p in problems)}",
        tuple(problems),
    )


def stops(lab: Lab, trials: int, large: int) -> Iterator[Row]:
    """SIGINT and SIGTERM, to the process and to its whole group, at any moment."""
    reference, slowest = lab.reference(), []

    def stopped(script: Script, signum: int, group: bool, twice: bool = False) -> tuple[float, int, str]:
        start = time.monotonic()
        (os.killpg if group else os.kill)(script.process.pid, signum)
        if signum == signal.SIGTERM or twice:  # `timeout` sends SIGTERM twice; a second Ctrl-C is urgent
            script.wait_until(lambda: False, 0.1 if twice else 0)
            if script.running:
                script.process.send_signal(signum)
        end = script.ended()
        return time.monotonic() - start, end.code, end.out + end.err

    def trial(number: int) -> str:
        draws, name = lab.draws("stops", number), f"stop-{number}"
        signum, workers = draws.choice([signal.SIGINT, signal.SIGTERM]), draws.choice([0, 2])
        group, twice = draws.random() < 0.5, signum == signal.SIGINT and draws.random() < 0.3
        run = lab.folder / name
        script, steps = lab.train_noted(name, SMALL, "--workers", workers)
        after = draws.randrange(STEPS)
        script.wait_until(lambda: (run / "config.json").exists() and steps() >= after)
        script.wait_until(lambda: False, draws.uniform(0, 0.4))
        if not script.running:
            return f"{name}: ended by itself"
        seconds, code, text = stopped(script, signum, group, twice)
        slowest.append(seconds)
        if code == 0 and "completed after" in text:  # it came as the last line was printed
            return ""
        if code != 128 + signum or seconds > 10 or "Traceback" in text:
            return f"{name}: exit code {code} after {seconds:.1f} s: {text[-300:]}"
        saved = whole(run)
        if list(run.glob(".*")):
            return f"{name}: a temporary file is left"
        if not twice and (saved or 0) - steps() not in (0, 1):  # the step in hand is noted after the signal
            return f"{name}: saved after step {saved} of the {steps()} taken"
        if not twice and (saved or 0) > STEPS // 4 and not (run / "curves.png").exists():
            return f"{name}: no plots"
        ended = lab.resume(run).ended()
        return "" if ended.code == 0 and outcome(run) == reference else f"{name}: went on to other bits {ended.err}"

    problems = [problem for problem in lab.each(trial, range(trials)) if problem]

    for number in range(large):  # steps of the usual size, on all cores: how long they may keep a signal waiting
        draws, name = lab.draws("large", number), f"large-{number}"
        script = Script(
            lab,
            ["scripts/train.py", "--dataset", "synthetic", "--output-dir", lab.folder, "--name", name],
            OMP_NUM_THREADS=str(os.cpu_count()),
        )
        script.wait_until((lab.folder / name / "lr_schedule.png").exists)
        script.wait_until(lambda: False, draws.uniform(0, 25))
        seconds, code, text = stopped(script, signal.SIGTERM, group=True)
        slowest.append(seconds)
        if code != 143 or seconds > 10 or whole(lab.folder / name) is None:
            problems.append(f"{name}: exit code {code} after {seconds:.1f} s: {text[-300:]}")
    total = trials + large
    what = "SIGINT or SIGTERM, to the process or its group: exit code 130 or 143 within 10 s, all saved, resumed equal"
    yield Row("8", what, total, total - len(problems), f"slowest: {max(slowest):.1f} s", tuple(problems))


def worker_counts(lab: Lab, counts: tuple[int, ...]) -> Iterator[Row]:
    """The same weights, whoever augments."""

    def digest(workers: int) -> str:
        end = lab.train(f"workers-{workers}", SMALL, "--workers", workers).ended()
        if end.code:
            return end.err
        model = checkpoint.load(lab.folder / f"workers-{workers}" / "last.pt")["model"]
        return hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.values())).hexdigest()

    digests = lab.each(digest, counts)
    held = sum(value == digests[0] for value in digests)
    yield Row(
        "9",
        f"numbers of workers ({', '.join(map(str, counts))}): one hash of the weights",
        len(counts),
        held,
        digests[0][:12],
    )


def draws(lab: Lab, workers: tuple[int, ...], epochs: int) -> Iterator[Row]:
    """No batch's augmentation is drawn twice, and every number of workers draws the same.

    One picture all over, every pixel telling its place: batches alike could only come from draws alike.
    """
    y, x = np.mgrid[:32, :32].astype(np.uint8)
    image = np.stack([y, x, y + x], axis=-1)
    split = Split(np.repeat(image[None], 320, axis=0), np.zeros(320, np.int64), synthetic.CLASSES)
    augmented = AugmentedBatches(split, crop_padding=4, flip=True, cutout=8)
    sequences = []
    for count in workers:
        loader = train_loader(augmented, Plans(320, 16, epochs, seed=lab.seed % 2**32), workers=count, pin_memory=False)
        with running(loader) as batches:
            sequences.append([images.numpy().tobytes() for images, _ in batches])
    duplicates = sum(len(sequence) - len(set(sequence)) for sequence in sequences)
    alike = sum(sequence == sequences[0] for sequence in sequences)
    drawn = sum(map(len, sequences))
    problems = () if alike == len(workers) else (f"{len(workers) - alike} numbers of workers drew something else",)
    yield Row(
        "10",
        f"draws of batches over {len(workers)} numbers of workers and {epochs} epochs: none twice",
        drawn,
        drawn - duplicates,
        f"duplicates: {duplicates}",
        problems,
    )


def machine(lab: Lab) -> Iterator[Row]:
    """What the machine can do to a run: a full disk, a full /dev/shm, a killed worker, a killed rank."""
    lab.reference()
    results = lab.each(lambda check: check(lab), [_full_disk, _full_shared_memory, _killed_worker])
    results.append(_killed_rank(lab))
    problems = [problem for problem in results if problem]
    what = "full disk, full /dev/shm, killed worker, killed rank: one line, checkpoint whole, goes on to the same bits"
    yield Row("12", what, len(results), len(results) - len(problems), "", tuple(problems))


def _goes_on(lab: Lab, run: Path, wanted: list) -> str:
    end = lab.resume(run, "--workers", 0).ended()
    return "" if end.code == 0 and outcome(run) == wanted else f"{run.name}: {end.code} {end.err[-300:]}"


def _full_disk(lab: Lab) -> str:
    """A disk for two checkpoints and no third, which only this process sees."""
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
    if not whole(kept) or list(kept.glob(".*")):
        return "full disk: no checkpoint, or a temporary file"
    return _goes_on(lab, kept, lab.reference())


def _full_shared_memory(lab: Lab) -> str:
    """A /dev/shm for two batches of the eight that are made beforehand."""
    command = (
        "mount -t tmpfs -o size=160k none /dev/shm && "
        f'"$0" scripts/train.py {SMALL} --workers 2 --output-dir {lab.folder} --name shm'
    )
    end = _in_namespace(lab, command)
    if not end.one_line(1) or "--workers 0" not in end.err:
        return f"full /dev/shm: exit code {end.code}: {end.err[-300:]}"
    return _goes_on(lab, lab.folder / "shm", lab.reference())


def _in_namespace(lab: Lab, command: str) -> Ended:
    rights = [] if os.geteuid() == 0 else ["--map-root-user"]
    script = Script(lab, [], prefix=["unshare", "--mount", *rights, "sh", "-c", command])
    return script.ended()


def _killed_worker(lab: Lab) -> str:
    (lab.folder / "worker-tmp").mkdir()
    # What a worker that is killed itself leaves of its sockets, nobody can know of.
    script, steps = lab.train_noted("worker", SMALL, "--workers", 2, TMPDIR=str(lab.folder / "worker-tmp"))
    script.wait_until(lambda: steps() >= 4)
    children = Path(f"/proc/{script.process.pid}/task/{script.process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    end = script.ended()
    if not end.one_line(1) or "a worker was killed" not in end.err or not whole(lab.folder / "worker"):
        return f"killed worker: exit code {end.code}: {end.err[-300:]}"
    return _goes_on(lab, lab.folder / "worker", lab.reference())


def _killed_rank(lab: Lab) -> str:
    """torchrun starts both again, and they go on to the bits of two that nothing happened to."""
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
    return "" if outcome(runs[0]) == outcome(runs[1]) else "killed rank: other bits"


def remains(lab: Lab) -> Iterator[Row]:
    """What is left of it all."""
    end = time.monotonic() + 15  # a worker looks for its parent every 5 s
    while lab.orphans() and time.monotonic() < end:
        time.sleep(0.5)
    found = {"orphans": lab.orphans(), "temporary files": lab.leftovers(), "hangs": lab.hung}
    problems = tuple(f"{what}: {left}" for what, left in found.items() if left)
    remark = ", ".join(f"{what}: {len(left)}" for what, left in found.items())
    started = len(lab.sessions)
    yield Row("11", f"left of the {started} processes: nothing", started, started - len(problems), remark, problems)
