"""Commands in this process, with few images and the real network."""

from __future__ import annotations

import contextlib
import io
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from s10_resnet import cli
from s10_resnet.data import dataset, synthetic
from s10_resnet.data.dataset import Split

QUICK = "--dataset synthetic --batch-size 20 --device cpu --precision fp32"


class Ended(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture(scope="package")
def few_images() -> Iterator[None]:
    """Few synthetic images: to generate all of them takes longer than the trainings."""
    splits = tuple(Split(*synthetic.generate(size, seed), synthetic.CLASSES) for size, seed in ((60, 1), (20, 2)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "load_synthetic", lambda: splits)
        patch.setenv("S10_DATA_DIR", "nowhere")
        yield


@pytest.fixture(scope="package")
def command(few_images: None) -> Command:
    """Runs a command line such as ``train --epochs 1``."""

    def run(line: str, *more: object) -> Ended:
        name, *argv = shlex.split(line)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.run(name, [*argv, *map(str, more)], prog=f"{name}.py")
        return Ended(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="package")
def runs(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, whose name is not valid UTF-8, with two runs that differ in their seed."""
    folder = tmp_path_factory.mktemp("outputs") / "outputs\udcff"
    for seed in (0, 1):
        ended = command(f"train {QUICK} --epochs 1 --seed {seed} --name run-{seed} --output-dir", folder)
        assert (ended.code, ended.err) == (0, "")
    return folder
