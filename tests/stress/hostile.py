"""Damaged and malicious files, and bad command lines."""

from __future__ import annotations

import json
import pickle
import shlex
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch

from s10_resnet import cli
from s10_resnet.config import Settings, flag, is_positional
from s10_resnet.utils import serialization
from s10_resnet.utils.serialization import CheckpointError
from tests.stress.lab import REPOSITORY, Lab, Row, Script


def damage(lab: Lab, flips: int, cuts: int) -> Iterator[Row]:
    """Single bits flipped and ends cut off."""
    lab.reference()
    good = (lab.folder / "reference-0" / "checkpoint.pt").read_bytes()
    draws, path = lab.draws("damage"), lab.folder / "damaged.pt"

    def refused(content: bytes) -> bool:
        path.write_bytes(content)
        try:
            serialization.load(path)
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
    """Files that run code when they are unpickled, wherever the scripts read one."""
    lab.reference()
    witness, root = lab.folder / "EXECUTED", lab.folder / "malice"
    code = Hostile(witness)

    def run_with(name: str, change: Callable[[Path], None]) -> list[object]:
        run = root / name
        run.mkdir(parents=True)
        shutil.copy(lab.folder / "reference-0" / "config.json", run)
        change(run)
        return ["scripts/train.py", "--resume", run]

    def with_digest(content: dict) -> Callable[[Path], None]:
        return lambda run: serialization.save(run / "checkpoint.pt", content)

    def plain(run: Path) -> None:
        torch.save({"state": code}, run / "checkpoint.pt")

    def bare(run: Path) -> None:
        body = pickle.dumps(code)
        (run / "checkpoint.pt").write_bytes(body + serialization._digest(body))

    def legacy(run: Path) -> None:
        torch.save({"state": code}, run / "raw.pt", _use_new_zipfile_serialization=False)
        body = (run / "raw.pt").read_bytes()
        (run / "checkpoint.pt").write_bytes(body + serialization._digest(body))

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
    config = json.loads((lab.folder / "reference-0" / "config.json").read_text())
    commands = {
        "a checkpoint with code, as torch writes it": run_with("plain", plain),
        "the same with a digest": run_with("sealed", with_digest({"state": code})),
        "code among the settings of a checkpoint": run_with(
            "settings",
            with_digest({"state": {}, "max_lr": 0.1, "config": code, "dataset": "synthetic", "environment": {}}),
        ),
        "a bare pickle with a digest": run_with("bare", bare),
        "torch's old format with a digest": run_with("legacy", legacy),
        "settings that are code": run_with("config-code", settings("__import__('os').system('touch EXECUTED')")),
        "settings that are a pickle": run_with("config-pickle", settings(pickle.dumps(code))),
        "settings that lead out of the folder": run_with(
            "config-name", settings(json.dumps({**config, "name": "../../x"}))
        ),
        "settings nested without end": run_with("config-deep", settings("[" * 100_000)),
        "settings with a field more": run_with(
            "config-more", settings(json.dumps({**config, "__class__": "os.system"}))
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
        quick = shlex.split("--max-train-samples 60 --batch-size 20 --epochs 1")  # if it is not refused
        command = ["scripts/train.py", *quick, "--data-dir", folder.parent, "--output-dir", lab.folder / "out"]
        end = Script(lab, command).ended()
        shutil.rmtree(folder.parent)
        named = f"{name} is damaged" if source else "data_batch_1 is damaged"
        return "" if end.one_line(2) and named in end.err else f"{name} {how}: {end.err[-300:]}"

    items = [(name, how) for name in names for how in ("changed", "cut short")]
    problems = [problem for problem in lab.each(refused, items) if problem]
    what = "data files with one byte changed or cut off: refused by name" + ("" if source else " (no real data here)")
    yield Row("6", what, len(items), len(items) - len(problems), "", tuple(problems))


BY_HAND = """
--no-such-flag
stray
--epochs
--epoch 3
--no-epochs
--deterministic=yes
--flip yes
--limit 60
--rotation 15
--runs 3
--cutout 8
--betas 0.9
--betas 0.9 0.99 0.999
--max-lr fast
--max-lr -1e-3
--max-lr 1e-400
--workers some
--workers -1
--lr-finder-start-lr 1 --lr-finder-end-lr 0.1
--name ../x
--name .x
--name a/b
--device cuda:x
--device cuda:77
--precision fp16 --device cpu
--seed 4294967296
--max-train-samples 9
--data-dir README.md
--dataset synthetic --batch-size 10001
--dataset synthetic --val-size 10000
--dataset synthetic --max-train-samples 10 --batch-size 11
--dataset synthetic --output-dir README.md/x
--resume
--resume ''
--resume /nowhere
--resume README.md
--resume s10_resnet
""".strip().splitlines()


# A good command line of each of the other commands, to which the bad values are added.
GOOD = {
    "evaluate": "--checkpoint {run}/last.pt",
    "predict": "--checkpoint {run}/last.pt {run}/curves.png",
    "compare": "{run} {run}",
    "export": "--checkpoint {run}/last.pt --format safetensors --data-dir nowhere",
    "benchmark": "--quick --dataset synthetic",
    "sweep": "--dataset synthetic",
}
BY_HAND_AFTER = """
evaluate
evaluate --checkpoint
evaluate --checkpoint README.md
evaluate --checkpoint {run}/checkpoint.pt
evaluate --checkpoint {run}/last.pt --split val
evaluate --checkpoint {run}/last.pt --images README.md
evaluate --checkpoint {run}/last.pt --images {run}
evaluate --checkpoint {run}/last.pt stray
predict
predict --checkpoint {run}/last.pt
predict --checkpoint {run}/last.pt README.md
predict --checkpoint {run}/last.pt no/such/*.png
predict --checkpoint {run}/last.pt {run}/curves.png --plot {run}
predict --checkpoint {run}/last.pt {run}/curves.png --plot no/such/folder.png
predict --checkpoint {run}/config.json {run}/curves.png
compare
compare {run}
compare {run} README.md
compare {run} s10_resnet
compare {run} {run}/last.pt
export
export --checkpoint {run}/summary.json
export --checkpoint {run}/last.pt --output {run}/last.pt
export --checkpoint {run}/last.pt --output no/such/folder.onnx
sweep stray
sweep --dataset synthetic ''
sweep --dataset synthetic max-lr
sweep --dataset synthetic max-lr=
sweep --dataset synthetic max-lr=1e-3,
sweep --dataset synthetic no-such=1
sweep --dataset synthetic seed=1
sweep --dataset synthetic cutout-size=4 'flip=maybe cutout-size=6'
sweep --dataset synthetic batch-size=5001
sweep --dataset synthetic flip=none --augment-on device --workers 2
sweep --dataset auto
sweep --tensorboard
sweep --resume
sweep --resume README.md
sweep --resume {run}
benchmark stray
benchmark --quick --dataset auto
benchmark --quick --dataset cifar10 --data-dir README.md
benchmark --dataset synthetic --max-train-samples 60 --batch-size 61
benchmark --quick --dataset synthetic --augment-on device --workers 2
""".strip().splitlines()


BAD_VALUES: dict[type, list[str]] = {
    int: ["x", "1.5", "-1", "1e3", "", "9" * 30],
    float: ["x", "nan", "inf", "-1", "1,5", ""],
    str: ["?", "no such word", "\u0130"],
}
GOOD_VALUES = {("max_train_samples", "9" * 30)}  # more than there are: all are used


def kind(annotation: Any) -> type:
    """Returns the type of the values of a field: of a number the number's, ``str`` for words."""
    members = [kind(member) for member in get_args(annotation) if member is not type(None)]
    if get_origin(annotation) is Literal:
        return str
    return next((member for member in members if member in BAD_VALUES), annotation) if members else annotation


def generated(settings: type[Settings]) -> list[list[str]]:
    """Returns flags with values that they do not allow."""
    flags = []
    for name, field in settings.model_fields.items():
        if is_positional(field) or name in settings.HIDDEN:
            continue
        count = len(get_args(field.annotation)) if get_origin(field.annotation) is tuple else 1
        for value in BAD_VALUES.get(kind(field.annotation), []):
            if (name, value) not in GOOD_VALUES:
                flags.append([flag(name), *[value] * count])
    return flags


def bad_command_lines(lab: Lab, stride: int) -> Iterator[Row]:
    """Values that no flag allows, generated from the settings, and bad lines by hand; every ``stride``-th of them."""
    lab.reference()
    run = lab.folder / "reference-0"
    commands = [
        (f"{command}.py", line)
        for command in ("train", "find_lr")
        for line in [
            *(["--dataset", "synthetic", *line] for line in generated(cli.COMMANDS[command].settings)),
            *map(shlex.split, BY_HAND),
        ]
    ]
    for command, good in GOOD.items():
        commands += [
            (f"{command}.py", [*shlex.split(good.format(run=run)), *line])
            for line in generated(cli.COMMANDS[command].settings)
        ]
    for line in BY_HAND_AFTER:
        command, *argv = shlex.split(line.format(run=run))
        commands.append((f"{command}.py", argv))

    commands = commands[::stride]

    def trial(item: tuple[int, tuple[str, list[str]]]) -> str:
        number, (script, line) = item
        makes_folders = script in ("train.py", "find_lr.py", "compare.py", "benchmark.py", "sweep.py")
        out = ["--output-dir", lab.folder / f"bad-{number}"] if makes_folders and "--output-dir" not in line else []
        end = Script(lab, [f"scripts/{script}", *out, *line]).ended()
        if (lab.folder / f"bad-{number}").exists():
            return f"{script} {shlex.join(line)}: left a folder"
        how = "Traceback" if "Traceback" in end.err else f"exit code {end.code}"
        return "" if end.one_line(2) and not end.out else f"{script} {shlex.join(line)}: {how}: {end.err[-200:]}"

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
