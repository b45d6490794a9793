"""The commands as users type them in eight processes, and those of README.md; tests/integration has the rest."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import matplotlib
import pytest

from s10_resnet.utils import serialization
from tests.cli.readme import readme_commands, run_readme

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = "--dataset synthetic --max-train-samples 60 --batch-size 20 --device cpu"


class Ended(NamedTuple):
    """A process that has ended."""

    code: int
    out: str
    err: str


def start(line: str, *more: object, **environment: str) -> subprocess.Popen:
    """Starts Python with arguments, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *shlex.split(line), *map(str, more)],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "S10_DATA_DIR": "nowhere",
            "COLUMNS": "80",
            **environment,
        },
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def run(line: str, *more: object, **environment: str) -> Ended:
    process = start(line, *more, **environment)
    out, err = process.communicate(timeout=240)
    return Ended(process.returncode, out, err)


def stop_and_resume(folder: Path) -> tuple[Ended, int, dict, Ended]:
    """Stops a training by a SIGTERM after its first epoch and resumes it: its two ends, the step, the first summary."""
    process = start(f"scripts/train.py {QUICK} --epochs 5 --workers 2 --name resumed --output-dir", folder)
    for line in process.stdout:
        if line.split()[:1] == ["1/5"]:
            break
    os.killpg(process.pid, signal.SIGTERM)  # as a supervisor does it: the workers get it, too
    out, err = process.communicate(timeout=120)
    saved = serialization.load(folder / "resumed" / "checkpoint.pt")["state"]["step"]
    stopped = json.loads((folder / "resumed" / "summary.json").read_text())
    second = run("scripts/train.py --resume", folder / "resumed")
    return Ended(process.returncode, out, err), saved, stopped, second


def search_and_train(folder: Path) -> tuple[Ended, Ended]:
    """Runs a range test, and a training with what it recommends."""
    search = run(f"scripts/find_lr.py {QUICK} --lr-finder-steps 40 --name search --output-dir", folder)
    advice = re.findall(r"^next: python (.+)$", search.out, re.MULTILINE)
    return search, run(*advice, *shlex.split(QUICK), "--epochs", 1, "--name", "found", "--output-dir", folder)


def sweep_and_extend(folder: Path) -> tuple[Ended, Ended]:
    """Runs a sweep of two settings with one seed, and then with another seed."""
    settings = "--max-train-samples 40 --val-size 40 --epochs 1 --num-seeds 1 --name sweep"
    first = run(f"scripts/sweep.py flip=none --dataset synthetic --batch-size 20 {settings} --output-dir", folder)
    return first, run(f"scripts/sweep.py --resume {folder / 'sweep'} --num-seeds 2")


def audit(folder: Path) -> Ended:
    """Trains with AUDIT."""
    (folder / "tmp").mkdir()
    (folder / "audit.py").write_text(AUDIT)
    return run(
        f"{folder / 'audit.py'} scripts/train.py {QUICK} --epochs 1 --workers 2 --name audited --output-dir {folder}",
        SEEN=str(folder / "seen"),
        TMPDIR=str(folder / "tmp"),
        PYTHONDONTWRITEBYTECODE="1",
    )


def readme(folder: Path) -> subprocess.CompletedProcess | None:
    """Runs the commands of README.md."""
    if os.name != "posix" or shutil.which("bash") is None:
        return None
    (folder / "clone").mkdir()
    return run_readme(folder / "clone")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def ends(folder):
    """What becomes of the trainings, which run two at a time."""
    work = (stop_and_resume, readme, search_and_train, sweep_and_extend, audit)
    with ThreadPoolExecutor(2) as pool:
        futures = {function: pool.submit(function, folder) for function in work}
        yield futures


@pytest.mark.skipif(os.name != "posix", reason="process groups are of POSIX")
def test_a_training_is_stopped_by_sigterm_and_resumed(ends, folder):
    first, saved, stopped, second = ends[stop_and_resume].result()
    assert (first.code, first.err) == (143, "train.py: terminated\n")
    assert stopped["status"] == "interrupted"
    assert 3 <= saved < 15
    assert (
        f"saved after step {saved} of 15\nto continue: python scripts/train.py --resume {folder / 'resumed'}\n"
        in first.out
    )
    assert (second.code, second.err) == (0, "")
    run_dir = folder / "resumed"
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["status"], summary["epochs"], summary["dataset"]) == ("completed", 5, "synthetic")
    assert summary["parameters"] == 6_573_120
    assert "6,573,120 parameters" in second.out
    for name in ("samples", "lr_schedule", "curves", "confusion", "misclassified"):
        assert (run_dir / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert {"report.html", "MODEL_CARD.md", "last.pt", "best.pt"} <= {path.name for path in run_dir.iterdir()}
    assert not list(run_dir.glob(".*.tmp"))


def test_a_range_test_recommends_what_a_training_takes(ends, folder):
    search, training = ends[search_and_train].result()
    assert (search.code, search.err) == (0, "")
    content = json.loads((folder / "search" / "lr_finder.json").read_text())
    assert {"lr_finder.png", "lr_finder.csv"} <= {path.name for path in (folder / "search").iterdir()}
    assert (training.code, training.err) == (0, "")
    assert json.loads((folder / "found" / "summary.json").read_text())["max_lr"] == content["recommended_max_lr"]


def test_a_sweep_trains_variants_and_is_extended(ends, folder):
    for end in ends[sweep_and_extend].result():
        assert (end.code, end.err) == (0, "")
    content = json.loads((folder / "sweep" / "sweep.json").read_text())
    assert [(row["label"], row["failed"], row["statistics"]["accuracy"]["n"]) for row in content["variants"]] == [
        ("baseline", 0, 2),
        ("flip=none", 0, 2),
    ]
    assert (content["eval_split"], content["eval_images"]) == ("val", 8)


def test_the_commands_of_the_readme_work_one_after_another(ends, folder):
    ended = ends[readme].result()
    if ended is None:
        pytest.skip("README's commands are for a POSIX shell")
    told = f"{ended.stdout}\n{ended.stderr}"
    codes = [int(code) for code in re.findall(r"^exit code (\d+)$", ended.stdout, re.MULTILINE)]
    wrong = [command for command, code in zip(readme_commands(), codes, strict=True) if code]
    assert wrong == ["python scripts/train.py --lr 0.01"], told
    assert "train.py: error: --lr: is unknown; did you mean --max-lr?\n" in ended.stderr
    assert "examples/cat.png  " in ended.stdout
    assert "(1, 10)\n" in ended.stdout
    assert ended.stdout.count("\ncompleted after epoch 1: ") == 3  # two trainings, and a run resumed after its end
    assert len(list((folder / "clone" / "outputs").iterdir())) == 3


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    module = run("-m s10_resnet find-lr --epoch 3 --output-dir", tmp_path / "outputs")
    assert (module.code, module.out) == (2, "")
    assert re.fullmatch(r"python -m s10_resnet find-lr: error: --epoch: .+\n", module.err)
    assert not (tmp_path / "outputs").exists()


AUDIT = """
import os, runpy, sys
seen = os.open(os.environ["SEEN"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
NAMES = {"os.mkdir": [0], "os.rename": [0, 1], "os.remove": [0], "os.link": [0, 1], "os.symlink": [1], "os.rmdir": [0]}

def note(event, arguments):
    if event == "socket.getaddrinfo" or event == "socket.connect" and isinstance(arguments[1], tuple):
        os.write(seen, f"network {arguments}\\n".encode())
    if event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        os.write(seen, f"{arguments[0]}\\n".encode())
    for place in NAMES.get(event, ()):
        os.write(seen, f"{arguments[place]}\\n".encode())

sys.addaudithook(note)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_no_network_is_used_and_nothing_is_written_elsewhere(ends, folder):
    """Python reports every file that it opens or renames and every address that it looks up, in the workers, too."""
    end = ends[audit].result()
    assert (end.code, end.err) == (0, "")
    seen = set((folder / "seen").read_text().splitlines())
    assert not [line for line in seen if line.startswith("network")]
    allowed = (folder / "audited", folder / "tmp", matplotlib.get_cachedir(), matplotlib.get_configdir(), "/dev/null")
    elsewhere = [path for path in seen if not path.startswith(tuple(map(str, allowed)))]
    assert not [path for path in elsewhere if not Path(path).name.startswith("torchinductor")]  # a cache of torch
    assert any("checkpoint.pt" in path for path in seen)
    assert not list((folder / "tmp").glob("pymp-*"))
