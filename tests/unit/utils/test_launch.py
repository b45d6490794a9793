import subprocess
import sys
from pathlib import Path

import pytest

from s10_resnet.errors import InputError
from s10_resnet.utils.launch import LaunchEnv, command, launch_env
from tests.conftest import REPOSITORY

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")


@pytest.fixture
def launched(monkeypatch):
    def read(text):
        given = dict(part.split("=") for part in text.split())
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        return launch_env()

    return read


@pytest.mark.parametrize(
    "text", ["", "RANK=1", "RANK=x LOCAL_RANK=9", "WORLD_SIZE=", "WORLD_SIZE=1 RANK=1", "WORLD_SIZE=1 RANK=0"]
)
def test_without_a_world_it_is_one_process(launched, text):
    assert launched(text) == LaunchEnv(rank=0, local_rank=0, world_size=1, restart_count=0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("WORLD_SIZE=4 RANK=3 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2", LaunchEnv(3, 1, 4, local_world_size=2)),
        ("WORLD_SIZE=2 RANK=1", LaunchEnv(1, 1, 2, local_world_size=2)),
        ("WORLD_SIZE=2 RANK=0 LOCAL_RANK=0 TORCHELASTIC_RESTART_COUNT=2", LaunchEnv(0, 0, 2, 2, 2)),
        ("TORCHELASTIC_RESTART_COUNT=1", LaunchEnv(restart_count=1)),  # torchrun --nproc-per-node 1
        ("WORLD_SIZE=1 TORCHELASTIC_RESTART_COUNT=", LaunchEnv()),
    ],
)
def test_the_variables_are_read(launched, text, expected):
    assert launched(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("WORLD_SIZE=x", "WORLD_SIZE=x: must be an integer of at least 1"),
        ("WORLD_SIZE=0", "WORLD_SIZE=0: must be an integer of at least 1"),
        ("WORLD_SIZE=-1 RANK=0", "WORLD_SIZE=-1: must be an integer of at least 1"),
        ("WORLD_SIZE=2.0 RANK=0", "WORLD_SIZE=2.0: must be an integer of at least 1"),
        ("WORLD_SIZE=2", "RANK=: must be an integer from 0 to 1"),
        ("WORLD_SIZE=2 RANK=2", "RANK=2: must be an integer from 0 to 1"),
        ("WORLD_SIZE=2 RANK=-1", "RANK=-1: must be an integer from 0 to 1"),
        ("WORLD_SIZE=2 RANK=one", "RANK=one: must be an integer from 0 to 1"),
        ("WORLD_SIZE=2 RANK=0 LOCAL_RANK=1", "LOCAL_RANK=1: must be an integer from 0 to 0"),
        ("WORLD_SIZE=2 RANK=1 LOCAL_WORLD_SIZE=1", "LOCAL_WORLD_SIZE=1: must be an integer from 2 to 2"),
        ("TORCHELASTIC_RESTART_COUNT=x", "TORCHELASTIC_RESTART_COUNT=x: must be an integer of at least 0"),
    ],
)
def test_nonsense_is_one_line(launched, text, message):
    with pytest.raises(InputError) as caught:
        launched(text)
    assert str(caught.value) == f"{message} in the environment, as torchrun sets it"


def test_torch_is_not_imported_for_it():
    script = "import sys; from s10_resnet import errors; from s10_resnet.utils import console, io, launch, signals; "
    subprocess.run([sys.executable, "-c", script + "sys.exit('torch' in sys.modules)"], cwd=REPOSITORY, check=True)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("scripts/train.py", "python scripts/find_lr.py"),
        ("/usr/local/bin/s10-train", "s10-find-lr"),
        ("s10_resnet/__main__.py", "python -m s10_resnet find_lr"),
        ("notebook.py", "s10-find-lr"),
    ],
)
def test_other_commands_are_named_as_this_one_was_run(monkeypatch, program, expected):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", [program])
    assert command("find_lr") == expected
    assert command("find_lr", "--name", Path("my run")) == f"{expected} --name 'my run'"
