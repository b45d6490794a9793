import contextlib
import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import torch

from s10_resnet.benchmark import gpu_report
from s10_resnet.config import BenchmarkConfig
from s10_resnet.errors import EnvironmentFailure, InputError
from s10_resnet.utils import serialization
from s10_resnet.utils.io import write_csv, write_json


class Package:
    """Stands for the package's commands: writes what they would leave."""

    def __init__(self, weights=(1.0, 1.0), code=143, stages=None):
        self.weights, self.code = weights, code  # of the uninterrupted and of the resumed training
        self.stages = stages  # an error of the benchmark
        self.commands, self.returncode, self.signals = [], None, []

    def run(self, words, timeout):
        assert 0 < timeout <= 240
        self.commands.append(words)
        if "--resume" in words:
            self.leave(self.stopped, self.weights[1], 0.05)
        elif words[1] == "benchmark":
            if self.stages:
                raise self.stages
            self.run_dir(words).mkdir()
            write_json(self.run_dir(words) / "benchmark.json", {"idle_share": 0.031})
        else:
            self.leave(self.run_dir(words), self.weights[0], 0.04)
        return f"{words[1]} said this\n", ""

    def leave(self, run_dir, weight, seconds):
        run_dir.mkdir(exist_ok=True)
        write_json(run_dir / "summary.json", {"final_eval_accuracy": 0.9412, "train_seconds": 13.54})
        write_csv(run_dir / "history.csv", [{"eval_accuracy": 0.5, "train_seconds": seconds}])
        serialization.save(run_dir / "last.pt", {"model": {"w": torch.tensor([0.0, weight])}})

    @contextlib.contextmanager
    def start(self, words):
        self.stopped = self.run_dir(words).with_name(words[-1])
        self.stopped.mkdir()
        serialization.save(self.stopped / "checkpoint.pt", {"state": {"step": 5}})
        (self.stopped / "history.csv").touch()
        yield self

    def run_dir(self, words):
        return Path(words[words.index("--output-dir") + 1]) / words[words.index("--name") + 1]

    def poll(self):
        return None

    def send_signal(self, signum):
        self.signals.append(signum)

    def communicate(self, timeout):
        self.returncode = self.code


@pytest.fixture
def report(tmp_path, monkeypatch):
    """Does a dry run with a package that is not there, and returns the content of the report."""

    def create(package, **changes):
        monkeypatch.setattr(gpu_report, "run_module", package.run)
        monkeypatch.setattr(gpu_report, "start_module", package.start)
        return gpu_report.create_gpu_report(
            BenchmarkConfig(quick=True, gpu_report=True, device="cpu", output_dir=tmp_path, name="b", **changes)
        )

    return create


def test_a_dry_run_does_all_that_needs_no_gpu(report, tmp_path, capsys):
    package = Package()
    content = report(package)
    assert json.loads((tmp_path / "b" / "gpu-report.json").read_text()) == content
    assert not [part for part in content["parts"] if "error" in part]
    by_title = {part["title"].split(",")[-1].strip(): part["results"] for part in content["parts"]}
    assert by_title.keys() == {
        "augmentation on the device", "seed 1", gpu_report.STAGES, "workers", "bf16", "stopped and resumed"
    }  # fmt: skip
    assert by_title["seed 1"]["final_eval_accuracy"] == 0.9412
    assert by_title[gpu_report.STAGES]["idle_share"] == 0.031
    resumed = by_title["stopped and resumed"]
    assert resumed["weights_bit_identical"]
    assert resumed["metrics_equal"]
    assert resumed["stopped_after_step"] == 5
    assert package.signals == [15]
    words = [" ".join(command) for command in package.commands]
    assert all("--dataset synthetic" in line for line in words if "--resume" not in line)
    assert sum("--augment-on device" in line for line in words) == 2
    assert sum("--augment-on cpu --workers 2" in line for line in words) == 1
    assert (tmp_path / "b" / "stages-beside-the-baseline-script" / "benchmark.json").exists()  # it stays
    page = (tmp_path / "b" / "gpu-report.md").read_text()
    assert page.startswith("# GPU report (dry run)\n")
    assert "    python -m s10_resnet train --dataset synthetic" in page
    assert "```\nbenchmark said this\n```" in page
    assert "Stopped after step 5 and resumed: bit-identical." in page
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(" s  2 epochs, augmentation on the device: 94.12%, 13.5 s of training steps")
    assert lines[2].endswith(f" s  {gpu_report.STAGES}")
    assert lines[-1] == f"see {tmp_path / 'b' / 'gpu-report.md'}"


def test_fp16_is_for_cuda():
    titles = {cuda: [part[0] for part in gpu_report.list_commands(BenchmarkConfig(), on_cuda=cuda)] for cuda in (0, 1)}
    assert set(titles[1]) - set(titles[0]) == {"2 epochs, fp16"}


def test_a_resumed_training_that_differs_is_said_to(report, tmp_path):
    results = report(Package(weights=(1.0, 1.5)))["parts"][-1]["results"]
    assert (results["weights_bit_identical"], results["largest_difference"]) == (False, 0.5)
    assert "**NOT the same**" in (tmp_path / "b" / "gpu-report.md").read_text()


def test_a_part_that_fails_is_recorded_and_the_others_go_on(report, tmp_path):
    content = report(Package(code=0, stages=EnvironmentFailure("out of\nluck")))
    assert ["error" in part for part in content["parts"]] == [False, False, True, False, False, True]
    assert content["parts"][2]["error"] == "EnvironmentFailure: out of luck"
    assert "exit code 0 after SIGTERM" in content["parts"][5]["error"]
    page = (tmp_path / "b" / "gpu-report.md").read_text()
    assert "**Failed** after 0 s: EnvironmentFailure: out of luck" in page


def test_without_a_gpu_there_is_only_the_dry_run(tmp_path):
    with pytest.raises(InputError, match=r"^--gpu-report: must be on a CUDA GPU, not cpu; with --quick"):
        gpu_report.create_gpu_report(BenchmarkConfig(gpu_report=True, device="cpu", output_dir=tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_signal_ends_the_report(report):
    with pytest.raises(KeyboardInterrupt):
        report(Package(stages=KeyboardInterrupt()))


def test_a_module_runs_to_its_end():
    assert gpu_report.run_module(["timeit", "-n", "1", "-r", "1", "pass"])[0].startswith("1 loop")
    with pytest.raises(EnvironmentFailure, match=r"(?s)^timeit -n: ended with exit code 1: .*ZeroDivisionError"):
        gpu_report.run_module(["timeit", "-n", "1", "1 / 0"])


@pytest.mark.parametrize("system", ["posix", "Windows"])
def test_a_module_that_takes_too_long_is_killed(monkeypatch, system):
    if system == "Windows":
        monkeypatch.delattr(os, "killpg")
    start = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired, match="timed out after"):
        gpu_report.run_module(["timeit", "-n", "1", "import time; time.sleep(60)"], timeout=0.5)
    assert time.monotonic() - start < 50
