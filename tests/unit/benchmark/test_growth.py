import mmap
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from s10_resnet.benchmark import growth
from s10_resnet.benchmark.growth import Footprint, footprint, measure
from s10_resnet.errors import InputError
from tests.runs import small

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the footprint is read from Linux's /proc"
)


def test_a_footprint_sees_files_processes_threads_and_memory(tmp_path):
    before = footprint()
    with (tmp_path / "a").open("w"), (tmp_path / "b").open("w"):
        assert footprint() == replace(footprint(), handles=before.handles + 2)
    done = threading.Event()
    thread = threading.Thread(target=done.wait, daemon=True)
    thread.start()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        with mmap.mmap(-1, 2**26) as block:
            block.write(b"x" * 2**26)
            now = footprint()
        child.communicate(b"\n")
    done.set()
    thread.join()
    assert (now.processes, now.threads) == (before.processes + 1, before.threads + 1)
    assert now.memory - before.memory > 0.9 * 2**26
    assert footprint().processes == before.processes


def test_a_straight_line_is_found():
    line = growth.fit_line((8, 16, 24), [3 + 0.5 * 8, 3 + 0.5 * 16, 3 + 0.5 * 24])
    assert line["start_up"] == pytest.approx(3)
    assert line["epoch"] == pytest.approx(0.5)
    assert line["off_line"] == pytest.approx(0, abs=1e-9)


def test_a_bent_line_is_off_by_a_share_of_the_time():
    line = growth.fit_line((8, 16, 24), [10.0, 20.0, 36.0])  # the line goes through 9, 22 and 35
    assert line["off_line"] == pytest.approx(2 / 20)
    assert (line["epochs"], line["seconds"]) == ([8, 16, 24], [10.0, 20.0, 36.0])


def test_nothing_is_left_over_from_run_to_run(small_parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(growth, "EPOCHS", (1, 2, 3))
    monkeypatch.setattr(growth, "RUNS", 3)
    before = footprint()
    measured = measure(small(tmp_path / "nowhere", workers=1))
    assert not (tmp_path / "nowhere").exists()
    assert measured["line"]["epochs"] == [1, 2, 3]
    assert len(measured["over_epochs"]) == len(measured["over_runs"]) == 3
    during, after = ([Footprint(**one) for one in measured[name]] for name in ("over_epochs", "over_runs"))
    assert {one.processes for one in during} == {before.processes + 1}
    assert {one.processes for one in after} == {before.processes}
    assert after[0].handles == after[2].handles
    assert after[0].threads == after[2].threads
    assert asdict(after[0]) == measured["over_runs"][0]
    assert capsys.readouterr().out == ""


def test_a_leak_would_be_seen(small_parts, tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "EPOCHS", (1, 2))
    monkeypatch.setattr(growth, "RUNS", 2)
    train, kept = growth.recipe.train, []
    monkeypatch.setattr(
        growth.recipe,
        "train",
        lambda config: kept.append(Path("/dev/null").open()) or train(config),  # noqa: SIM115
    )
    first, last = measure(small(tmp_path))["over_runs"]
    assert last["handles"] == first["handles"] + 1
    for file in kept:
        file.close()


def test_another_system_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "exists", lambda self: False)
    with pytest.raises(InputError, match=r"^--growth: must be on Linux"):
        measure(small(tmp_path))
