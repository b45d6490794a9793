"""The commands as a user types them, each in a process of its own."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from s10_resnet import checkpoint
from tests.conftest import REPOSITORY

QUICK = "--dataset synthetic --limit 60 --batch-size 20"


def start(command, **options):
    environment = {**os.environ, "S10_DATA_DIR": "nowhere"}
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def python(line, *more):
    process = start([sys.executable, *shlex.split(line), *map(str, more)])
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def readme_commands():
    blocks = re.findall(r"```console\n(.*?)```", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_the_readme_shows_the_commands_of_the_trade():
    commands = readme_commands()
    for command in ("make train", "make test", "python scripts/train.py --epochs 24", "python scripts/find_lr.py"):
        assert command in commands


def test_train_as_the_readme_says(tmp_path):
    code, out, err = python(f"scripts/train.py --epochs 24 {QUICK} --epochs 1 --output-dir", tmp_path)
    assert (code, err) == (0, "")
    (folder,) = tmp_path.iterdir()
    assert re.fullmatch(r"train-synthetic-\d{8}-\d{6}", folder.name)
    assert "6,573,120 parameters" in out
    assert "epoch 1/1" in out
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["dataset"], summary["epochs"], summary["parameters"]) == ("synthetic", 1, 6_573_120)
    for name in ("samples", "lr_schedule", "curves", "confusion", "mistakes"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_find_lr_as_the_readme_says(tmp_path):
    code, out, err = python(f"scripts/find_lr.py {QUICK} --finder-steps 20 --name search --output-dir", tmp_path)
    assert (code, err) == (0, "")
    content = json.loads((tmp_path / "search" / "lr_finder.json").read_text())
    assert f"python scripts/train.py --batch-size 20 --max-lr {content['recommended_max_lr']} " in out
    assert {"lr_finder.png", "lr_finder.csv"} <= {path.name for path in (tmp_path / "search").iterdir()}


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_make_train_trains(tmp_path):
    make = ["make", "--old-file=.venv/.installed", f"PYTHON={sys.executable}"]
    process = start([*make, "--dry-run", "train", "test"])
    commands, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    train = next(line for line in commands.splitlines() if "scripts/train.py" in line)
    assert train.split() == [".venv/bin/python", "scripts/train.py", "--dataset", "auto", "--epochs", "24"]
    for tool in ("ruff check .", "ruff format --check .", "python -m pytest"):
        assert f".venv/bin/{tool}" in commands


@pytest.mark.parametrize("script", ["train.py", "find_lr.py"])
@pytest.mark.parametrize(
    "flags",
    [
        "--epochs 0",
        "--max-lr fast",
        "--max-lr -1e-3",
        "--workers -1",
        "--device tpu",
        "--dataset synthetic --limit 60 --batch-size 61",
        "--no-such-flag",
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, script, flags):
    code, out, err = python(f"scripts/{script} {flags} --output-dir", tmp_path / "outputs")
    assert code == 2
    assert out == ""
    assert re.fullmatch(rf"{script}: error: .+\n", err)
    assert flags.split()[-2 if " " in flags else 0] in err
    assert not (tmp_path / "outputs").exists()


def test_no_data_and_no_network_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    code, out, err = python(f"scripts/train.py --data-dir {tmp_path} --output-dir", tmp_path / "outputs")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"train.py: error: --data-dir .*data_batch_1 is missing.*\n", err)
    assert not (tmp_path / "outputs").exists()


def test_an_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    code, _, err = python(f"scripts/train.py {QUICK} --output-dir", tmp_path / "file")
    assert code == 2
    assert re.fullmatch(r"train.py: error: --output-dir .*must be a folder.*\n", err)


@pytest.mark.skipif(os.name != "posix", reason="process groups are a matter of POSIX")
@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_ends_cleanly(tmp_path, workers):
    flags = f"{QUICK} --epochs 500 --workers {workers} --name run --output-dir {tmp_path}"
    process = start([sys.executable, "scripts/train.py", *shlex.split(flags)], start_new_session=True)
    for line in process.stdout:
        if line.startswith("epoch   2/500"):
            break
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to the workers, too
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err == "train.py: interrupted\n"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert f"interrupted after epoch {summary['epochs']}: synthetic" in out
    assert checkpoint.load(tmp_path / "run" / "last.pt")["epoch"] == summary["epochs"] >= 2
    assert (tmp_path / "run" / "curves.png").exists()
