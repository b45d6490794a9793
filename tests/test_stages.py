import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from s10_resnet import batches, engine, model, session, stages, textbook
from s10_resnet.errors import MachineError
from s10_resnet.stages import Stage
from tests.runs import small


@pytest.fixture
def run(small_parts, monkeypatch, tmp_path):
    """Two whole batches of 25 and one of 10 in an epoch."""
    monkeypatch.setattr(textbook, "ResNet9", lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(10)))
    return session.begin(small(tmp_path))


@pytest.fixture
def taken(monkeypatch):
    """The sizes of the batches that the package and the textbook script take steps with, in the order of the steps."""
    log = []

    def noting(name, owner):
        steps = owner.train_steps

        def noted(first, stream, *more):
            return steps(first, (log.append((name, len(batch[1]))) or batch for batch in stream), *more)

        monkeypatch.setattr(owner, "train_steps", noted)

    noting("package", engine)
    noting("textbook", textbook)
    return log


def test_rates_are_those_of_the_median_times():
    stage = Stage("x", 100, [9.0, 1.0, 2.0], [5.0, 30.0, 4.0])
    assert stage.rates == (50.0, 20.0)
    assert stage.ratio == 2.5


def test_both_are_timed_in_turn_after_a_warm_up(monkeypatch):
    now, log = [0.0], []
    monkeypatch.setattr(stages.time, "perf_counter", lambda: now[0])

    def work(name, durations):
        def done():
            log.append(name)
            now[0] += next(durations)

        return done

    times = stages._alternately(work("package", iter((50, 1, 2))), work("textbook", iter((60, 3, 5))), 2)
    assert log == ["package", "textbook"] * 3
    assert times == ([1, 2], [3, 5])


def test_the_pipeline_makes_the_same_batches_of_both(run, monkeypatch):
    monkeypatch.setattr(stages, "PIPELINE_IMAGES", 70)
    made = {"package": [], "textbook": []}
    ours, usual = batches.AugmentedBatches.__getitem__, textbook.Pictures.__getitem__

    def noted(self, plan):
        assert torch.get_num_threads() == 1
        made["package"] += plan.samples.tolist()
        return ours(self, plan)

    monkeypatch.setattr(batches.AugmentedBatches, "__getitem__", noted)
    monkeypatch.setattr(
        textbook.Pictures, "__getitem__", lambda self, i: made["textbook"].append(int(i)) or usual(self, i)
    )
    threads = torch.get_num_threads()
    stage = stages.pipeline(run, 2)
    assert torch.get_num_threads() == threads
    assert stage.images == 60  # the 25, 25 and 10 of an epoch are the fewest batches that come to 70 / 25
    assert made["package"] == made["textbook"]
    assert len(made["package"]) == 3 * 60
    assert (len(stage.package), len(stage.textbook)) == (2, 2)


def test_a_step_is_timed_on_batches_that_are_there(run, taken):
    stage = stages.step(run, 2)
    assert stage.images == 50
    assert taken == [("package", 25), ("package", 25), ("textbook", 25), ("textbook", 25)] * 3
    assert min(stage.package + stage.textbook) > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_is_whole_and_one_before_it_starts_the_workers(run, taken, workers):
    epoch = [25, 25, 10]
    stage = stages.epoch(run._replace(workers=workers), 2)
    assert stage.images == 60
    assert (len(stage.package), len(stage.textbook)) == (2, 2)
    expected = [("package", size) for size in epoch * (1 + workers)] + [("textbook", size) for size in epoch]
    assert taken == expected * 2


def test_whole_processes_do_the_same_work(run, monkeypatch):
    commands = []

    def finish(command, **_):
        commands.append(command[1:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", finish)
    stage = stages.process(run, 2)
    assert (stage.name, stage.images, len(stage.package)) == ("whole process, --epochs 2", 120, 2)
    package, usual = commands[:2]
    assert commands[2:] == [package, usual]
    assert (package[0], usual[:2]) == ("-c", ["-m", "s10_resnet.textbook"])
    flags, usual_flags = (dict(zip(words[2::2], words[3::2], strict=True)) for words in (package, usual))
    assert flags.pop("--augment-on") == "cpu"
    assert not Path(flags.pop("--output-dir")).exists()
    assert flags == usual_flags
    assert flags["--workers"] == "0"
    assert flags["--limit"] == "60"
    assert flags["--epochs"] == "2"
    assert flags["--batch-size"] == "25"


def test_the_textbook_script_keeps_its_workers_where_the_package_needs_none(run, taken, monkeypatch):
    monkeypatch.setattr(stages, "default_workers", lambda device: 1)
    assert stages.usual_workers(run) == 0
    on_device = run._replace(config=replace(run.config, augment_on="device"))
    assert stages.usual_workers(on_device) == 1
    commands = []
    monkeypatch.setattr(stages, "_finish", lambda command: commands.append(" ".join(command)))
    stages.process(on_device, 1)
    assert "--workers 0 --augment-on device" in commands[0]
    assert commands[1].endswith("--workers 1")
    stages.epoch(on_device, 1)
    assert [size for name, size in taken if name == "textbook"] == [25, 25, 10]
    assert stages.pipeline(on_device, 1).name == "input pipeline, on cpu"


def test_a_process_that_fails_is_no_measurement(run, monkeypatch):
    ended = subprocess.CompletedProcess([], 3, stderr="long ago\nout of luck\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(MachineError, match=r"^the whole process ended with exit code 3: [\s\S]*out of luck$"):
        stages.process(run, 1)


def test_the_rate_of_a_matrix_product(cpu, monkeypatch):
    monkeypatch.setattr(stages, "MATRIX", {"cpu": 16})
    now, products = [0.0], []

    def multiply(a, b, out):
        assert a.shape == b.shape == out.shape == (16, 16)
        products.append(a.dtype)
        now[0] += 0.05

    monkeypatch.setattr(torch, "mm", multiply)
    monkeypatch.setattr(stages.time, "perf_counter", lambda: now[0])
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
