import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from s10_resnet.benchmark import baseline_timer as textbook_timer
from s10_resnet.benchmark import stages, timing
from s10_resnet.benchmark.stages import Stage
from s10_resnet.data import loader as batches
from s10_resnet.errors import MachineError
from s10_resnet.models import resnet as model
from s10_resnet.training import loop as engine
from s10_resnet.training import session
from tests.runs import note_batches, small


@pytest.fixture
def run(small_parts, tmp_path):
    """Two whole batches of 25 and one of 10 in an epoch."""
    return session.begin(small(tmp_path))


@pytest.fixture
def log(monkeypatch):
    """What was done, in order: sizes of the package's steps, stages that the textbook script was asked for."""
    done = []
    note_batches(monkeypatch, engine, done.append)
    return done


@pytest.fixture
def textbook(log):
    return lambda stage: log.append(stage) or 7.0


def test_rates_are_those_of_the_median_times():
    stage = Stage("x", 100, [9.0, 1.0, 2.0], [5.0, 30.0, 4.0])
    assert stage.rates == (50.0, 20.0)
    assert stage.ratio == 2.5


def test_the_pipeline_makes_whole_batches(run, log, textbook, monkeypatch):
    monkeypatch.setattr(textbook_timer, "PIPELINE_IMAGES", 70)
    get = batches.AugmentedBatches.__getitem__

    def noted(self, plan):
        assert torch.get_num_threads() == 1
        log.append(plan.samples.tolist())
        return get(self, plan)

    monkeypatch.setattr(batches.AugmentedBatches, "__getitem__", noted)
    threads = torch.get_num_threads()
    stage = stages.pipeline(run, 2, textbook)
    assert torch.get_num_threads() == threads
    assert (stage.name, stage.images, stage.textbook) == ("input pipeline, one core", 75, [7.0, 7.0])
    assert len(stage.package) == 2
    assert min(stage.package) > 0
    plans = [plan.samples.tolist() for plan in session.loader(run, 1).sampler]
    assert log == [plans[0], plans[1], plans[0], "pipeline"] * 3  # the ragged batch is left out


def test_a_step_is_timed_on_batches_that_are_there(run, log, textbook):
    stage = stages.step(run, 2, textbook)
    assert (stage.images, stage.textbook) == (50, [7.0, 7.0])
    assert log == [25, 25, "step"] * 3
    assert min(stage.package) > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_is_whole_and_one_before_it_starts_the_workers(run, log, textbook, monkeypatch, workers):
    seconds = timing.seconds
    monkeypatch.setattr(timing, "seconds", lambda *given: log.append("clock") or seconds(*given))
    stage = stages.epoch(run._replace(workers=workers), 1, textbook)
    assert (stage.images, stage.textbook) == (60, [7.0])
    assert log == [*[25, 25, 10] * workers, "clock", 25, 25, 10, "epoch"] * 2


def test_on_a_device_the_pipeline_is_that_of_the_device(run, textbook):
    on_device = run._replace(config=replace(run.config, augment_on="device"))
    assert stages.pipeline(on_device, 1, textbook).name == "input pipeline, on cpu"


def test_whole_processes_do_the_same_work(run, monkeypatch):
    commands = []

    def finish(command, **_):
        commands.append(command[1:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", finish)
    stage = stages.process(run, 2, None)
    assert (stage.name, stage.images, len(stage.package)) == ("whole process, --epochs 2", 120, 2)
    package, usual = commands[:2]
    assert commands[2:] == [package, usual]
    assert (package[0], usual[:2]) == ("-c", ["-m", "s10_resnet.benchmark.baseline"])
    flags, usual_flags = (dict(zip(words[2::2], words[3::2], strict=True)) for words in (package, usual))
    assert flags.pop("--augment-on") == "cpu"
    assert not Path(flags.pop("--output-dir")).exists()
    assert flags == usual_flags
    assert flags["--workers"] == "0"
    assert flags["--limit"] == "60"
    assert flags["--epochs"] == "2"
    assert flags["--batch-size"] == "25"


def test_a_process_augments_where_it_is_told(run, monkeypatch):
    commands = []
    monkeypatch.setattr(stages, "_finish", lambda command: commands.append(" ".join(command)))
    monkeypatch.setattr(textbook_timer, "default_workers", lambda device: 7)
    stages.process(run._replace(config=replace(run.config, augment_on="device")), 1, None)
    assert "--workers 0 --augment-on device" in commands[0]
    assert commands[1].endswith("--workers 7")


def test_a_process_that_fails_is_no_measurement(run, monkeypatch):
    ended = subprocess.CompletedProcess([], 3, stderr="long ago\nout of luck\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(MachineError, match=r"^the whole process ended with exit code 3: [\s\S]*out of luck$"):
        stages.process(run, 1, None)


def test_the_rate_of_a_matrix_product(cpu, monkeypatch):
    monkeypatch.setattr(stages, "MATRIX", {"cpu": 16})
    now, products = [0.0], []

    def multiply(a, b, out):
        assert a.shape == b.shape == out.shape == (16, 16)
        products.append(a.dtype)
        now[0] += 0.05

    monkeypatch.setattr(torch, "mm", multiply)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    rates = stages.matrix_product(cpu, 3)
    assert rates == pytest.approx([2 * 16**3 / 0.05] * 3)
    assert products == [torch.float32] * (3 + 1 + 3 * 4)


def test_the_operations_of_a_step():
    def multiply_adds(size, *channels):
        return size * size * 9 * channels[0] * channels[1]

    prep = multiply_adds(32, 3, 64)
    others = (
        multiply_adds(32, 64, 128) + 2 * multiply_adds(16, 128, 128) + multiply_adds(16, 128, 256)
        + multiply_adds(8, 256, 512) + 2 * multiply_adds(4, 512, 512) + 512 * 10
    )  # fmt: skip
    assert round((prep + others) / 1e6, 2) == 379.26
    network = torch.nn.Sequential(model.Normalize((0.5,) * 3, (0.5,) * 3), model.ResNet9())
    assert stages.flops_per_image(network) == 2 * (2 * prep + 3 * others)  # nobody asks for the gradient of pixels
