import contextlib
import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from s10_resnet.benchmark import benchmark
from s10_resnet.config import BenchmarkConfig
from s10_resnet.data.loader import AugmentedBatches
from s10_resnet.errors import EnvironmentFailure, InputError
from s10_resnet.models.resnet import Normalize, ResNet9
from s10_resnet.utils.runtime import Runtime


def config(folder, **changes):
    settings = {"dataset": "synthetic", "device": "cpu", "batch_size": 25, "epochs": 2, "max_train_samples": 60}
    return BenchmarkConfig(**{**settings, "repeats": 3, "output_dir": folder, "name": "b", **changes})


@pytest.fixture
def log(monkeypatch):
    """What is done, in order: sizes of the package's steps, stages of the baseline script, uses of the clock."""
    events, train_one_epoch, measure = [], benchmark.train_one_epoch, benchmark._time

    def noted(state, batches, criterion):
        train_one_epoch(state, (events.append(len(batch[1])) or batch for batch in batches), criterion)

    monkeypatch.setattr(benchmark, "train_one_epoch", noted)
    monkeypatch.setattr(benchmark, "_time", lambda function: events.append("clock") or measure(function))
    return events


@pytest.fixture
def timer(log):
    return lambda stage: log.append(stage) or 7.0


@pytest.fixture
def stages(monkeypatch):
    """How often each stage is measured; their times are made up."""
    asked = {}

    def stage(name, images, package, others):
        def measure(setup, timer, repeats):
            asked[name] = repeats
            asked["config"] = setup.config
            clocks = iter(package).__next__, iter(others).__next__
            return benchmark.compare(name, images, *clocks, len(package), warm_up=0)

        return measure

    made_up = {
        "pipeline": stage("input pipeline, one core", 1000, [0.5, 0.25, 0.1], [1.0, 1.0, 1.0]),
        "step": stage("training step", 400, [2.0, 1.0, 4.0], [4.0, 8.0, 1.0]),
        "epoch": stage("whole epoch", 450, [2.5, 3.0, 2.0], [5.0, 5.0, 50.0]),
        "process": stage("whole process, --epochs 2", 900, [9.0], [18.0]),
    }
    for name, measure in made_up.items():
        monkeypatch.setattr(benchmark, f"measure_{name}", measure)
    monkeypatch.setattr(benchmark, "baseline_process", lambda setup: contextlib.nullcontext("timer"))
    monkeypatch.setattr(
        benchmark, "measure_matmul", lambda size, runtime, repeats: {1024: 1e12, 2048: 2e12}.get(size, 0)
    )
    monkeypatch.setattr(benchmark, "count_flops_per_image", lambda model: 1e9)
    return asked


def test_both_are_timed_in_turn_after_a_warm_up():
    events, times = [], {"package": iter([50.0, 9.0, 1.0, 2.0]), "baseline": iter([60.0, 5.0, 30.0, 4.0])}

    def timed(side):
        return lambda: events.append(side) or next(times[side])

    stage = benchmark.compare("a stage", 100, timed("package"), timed("baseline"), 3)
    assert events == ["package", "baseline"] * 4
    assert stage == {
        "name": "a stage",
        "images": 100,
        "package": [9.0, 1.0, 2.0],
        "baseline": [5.0, 30.0, 4.0],
        "package_images_per_second": 50.0,
        "baseline_images_per_second": 20.0,
        "ratio": 2.5,
    }


def test_the_pipeline_makes_full_batches_on_one_core(small_setup, log, timer, monkeypatch):
    monkeypatch.setattr(benchmark, "PIPELINE_IMAGES", 70)
    get, batches = AugmentedBatches.__getitem__, []

    def noted(self, spec):
        assert torch.get_num_threads() == 1
        batches.append(spec.indices.tolist())
        return get(self, spec)

    monkeypatch.setattr(AugmentedBatches, "__getitem__", noted)
    threads = torch.get_num_threads()
    stage = benchmark.measure_pipeline(small_setup, timer, 2)
    assert torch.get_num_threads() == threads
    assert (stage["name"], stage["images"], stage["baseline"]) == ("input pipeline, one core", 75, [7.0, 7.0])
    specs = [spec.indices.tolist() for spec in small_setup.build_loader(1).sampler]
    assert batches == [specs[0], specs[1], specs[0]] * 3  # the smaller batch is left out
    assert log == ["clock", "pipeline"] * 3
    on_device = benchmark.measure_pipeline(replace(small_setup, augment_on="device"), timer, 1)
    assert on_device["name"] == "input pipeline, on cpu"


def test_a_step_is_timed_on_a_batch_that_is_there(small_setup, log, timer):
    stage = benchmark.measure_step(small_setup, timer, 2)
    assert (stage["images"], stage["baseline"]) == (50, [7.0, 7.0])
    assert log == ["clock", 25, 25, "step"] * 3
    assert min(stage["package"]) > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_is_whole_and_workers_start_in_one_before(small_setup, log, timer, workers):
    stage = benchmark.measure_epoch(replace(small_setup, workers=workers), timer, 1)
    assert (stage["images"], stage["baseline"]) == (60, [7.0])
    assert log == [*[25, 25, 10] * workers, "clock", 25, 25, 10, "epoch"] * 2


@pytest.mark.parametrize("augment_on", ["cpu", "device"])
def test_whole_processes_do_the_same_work(small_setup, monkeypatch, augment_on):
    commands = []
    monkeypatch.setattr(benchmark, "run_module", commands.append)
    monkeypatch.setattr(benchmark, "default_num_workers", lambda device: 7)
    stage = benchmark.measure_process(replace(small_setup, augment_on=augment_on), None, 5)
    assert (stage["name"], stage["images"], len(stage["package"])) == ("whole process, --epochs 2", 120, 1)
    (package, *words), (script, *others) = commands
    assert (package, words.pop(0), script) == ("s10_resnet", "train", "s10_resnet.benchmark.baseline")
    assert words[-6:] == ["--flip", "random", "--cutout-size", "8", "--no-dirac-init", "--no-whitening-init"]
    flags, baseline_flags = (dict(zip(words[::2], words[1::2], strict=True)) for words in (words[:-6], others))
    assert flags.pop("--augment-on") == augment_on
    del flags["--output-dir"]
    assert flags.pop("--workers") == "0"
    assert baseline_flags.pop("--workers") == ("0" if augment_on == "cpu" else "7")
    assert flags == baseline_flags
    assert (flags["--max-train-samples"], flags["--epochs"], flags["--batch-size"]) == ("60", "2", "25")


def test_the_rate_of_a_matrix_product(monkeypatch):
    now, products = [0.0], []

    def multiply(a, b, out):
        assert a.shape == b.shape == out.shape
        products.append(a.dtype)
        now[0] += 0.05

    monkeypatch.setattr(torch, "mm", multiply)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    flops = benchmark.measure_matmul(8, Runtime(torch.device("cpu"), "bf16"), 3)
    assert flops == pytest.approx(2 * 8**3 / 0.05)
    assert products == [torch.bfloat16] * (3 + 1 + 3 * 10)  # half a second each


def test_the_flops_of_a_step():
    def multiply_adds(size, *channels):
        return size * size * 9 * channels[0] * channels[1]

    prep = multiply_adds(32, 3, 64)
    others = (
        multiply_adds(32, 64, 128) + 2 * multiply_adds(16, 128, 128) + multiply_adds(16, 128, 256)
        + multiply_adds(8, 256, 512) + 2 * multiply_adds(4, 512, 512) + 512 * 10
    )  # fmt: skip
    assert round((prep + others) / 1e6, 2) == 379.26
    model = torch.nn.Sequential(Normalize((0.5,) * 3, (0.5,) * 3), ResNet9())
    assert benchmark.count_flops_per_image(model) == 2 * (2 * prep + 3 * others)  # no gradient of the pixels


@pytest.mark.parametrize(
    ("spans", "length"),
    [([], 0), ([(1, 3)], 2), ([(4, 6), (1, 3)], 4), ([(1, 5), (2, 3)], 4), ([(1, 3), (2, 6), (6, 7)], 6)],
)
def test_what_several_spans_cover_counts_once(spans, length):
    assert benchmark.covered_length(spans) == length


def test_the_second_epoch_is_profiled(small_setup, log, capfd):
    table, idle = benchmark.profile_epoch(small_setup)
    assert log == [25, 25, 10, "clock", 25, 25, 10]
    assert idle is None
    assert capfd.readouterr().err == ""
    row = next(line for line in table.splitlines() if "aten::convolution_backward " in line)
    assert row.split()[-1] == "3"  # calls: one per step of one epoch


def test_a_device_is_idle_while_no_kernel_runs(small_setup, monkeypatch):
    spans = [(DeviceType.CUDA, 100, 300), (DeviceType.CUDA, 200, 500), (DeviceType.CPU, 0, 1000)]
    events = [SimpleNamespace(device_type=d, time_range=SimpleNamespace(start=a, end=b)) for d, a, b in spans]
    table = SimpleNamespace(table=lambda **options: options["sort_by"])
    profiler = SimpleNamespace(events=lambda: events, key_averages=lambda: table)
    monkeypatch.setattr(benchmark, "profile", lambda activities: contextlib.nullcontext(profiler))
    monkeypatch.setattr(benchmark, "_time", lambda function: 0.001)
    monkeypatch.setattr(benchmark, "_build_state", lambda setup: None)
    monkeypatch.setattr(benchmark, "train_one_epoch", lambda *_: None)
    monkeypatch.setattr(benchmark, "iterate_batches", lambda loader: contextlib.nullcontext(iter(())))
    monkeypatch.setattr(type(small_setup), "build_loader", lambda self, epochs: None)
    on_cuda = replace(small_setup, runtime=replace(small_setup.runtime, device=torch.device("cuda")))
    assert benchmark.profile_epoch(on_cuda) == ("self_device_time_total", pytest.approx(0.6))


def test_the_baseline_runs_in_a_process_of_its_own(small_setup):
    few = replace(
        small_setup, train=small_setup.train.subset(slice(10)), config=small_setup.config.replace(batch_size=5)
    )
    with benchmark.baseline_process(few) as timer:
        assert timer("step") > 0
        assert timer("pipeline") > 0
        for _ in range(2):  # while it ends, and after
            with pytest.raises(EnvironmentFailure, match=r"^the baseline script ended early$"):
                timer("no such stage")


def test_the_numbers_add_up(stages, small_setup, tmp_path, capsys):
    content = benchmark.benchmark(config(tmp_path))
    assert json.loads((tmp_path / "b" / "benchmark.json").read_text()) == content
    assert [stages[name] for name in ("input pipeline, one core", "training step", "whole epoch")] == [3, 3, 3]
    assert (stages["config"].batch_size, stages["config"].epochs) == (25, 2)
    assert content["achieved_flops"] == 200 * 1e9
    assert content["peak_matmul_flops"] == 2e12
    assert content["data_loading_share"] == pytest.approx(1 - 180 / 200)
    assert (content["world_size"], content["settings"]["batch_size"]) == (1, 25)
    assert "idle_share" not in content
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("synthetic: 60 training and 12 test images; cpu, ")
    assert out[1] == "batches of 25; the baseline script: fp32, 0 workers"
    table = [line.split() for line in out if line]
    assert ["package", "baseline", "ratio", "n"] in table
    assert ["training", "step", "200", "images/s", "100", "images/s", "2.00", "3"] in table
    assert ["whole", "process,", "--epochs", "2", "9.0", "s", "18.0", "s", "2.00", "1"] in table
    assert out[-4:] == [
        "training step: 1.00 GFLOP per image, 0.20 TFLOP/s",
        f"fastest {content['precision']} matrix product: 2.00 TFLOP/s",
        "data loading: 10.0% of an epoch",
        f"see {tmp_path / 'b' / 'benchmark.json'}",
    ]
    assert max(len(line) for line in out[:-1]) <= 80


def test_an_epoch_is_profiled_on_request(stages, small_setup, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "profile_epoch", lambda setup: ("a table\n", 0.0425))
    assert benchmark.benchmark(config(tmp_path, profile=True))["idle_share"] == 0.0425
    assert (tmp_path / "b" / "profile.txt").read_text() == "a table\n"
    assert "idle for 4.2% of an epoch" in capsys.readouterr().out


def test_quick_is_small(stages, small_setup, tmp_path, monkeypatch):
    create_setup, given = benchmark.create_setup, []
    monkeypatch.setattr(
        benchmark, "create_setup", lambda config: given.append(config) or create_setup(config.replace(batch_size=25))
    )
    benchmark.benchmark(BenchmarkConfig(quick=True, dataset="synthetic", device="cpu", output_dir=tmp_path))
    assert (given[0].epochs, given[0].batch_size, given[0].max_train_samples) == (1, 128, 512)
    assert stages["training step"] == 3


def test_bad_settings_leave_nothing(stages, small_setup, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"^--batch-size 500: must be at most"):
        benchmark.benchmark(config(tmp_path, batch_size=500))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match=r"^torchrun: a benchmark runs in a single process"):
        benchmark.benchmark(config(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_gpu_report_takes_the_place_of_the_stages(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "create_gpu_report", lambda config: {"epochs": config.epochs})
    assert benchmark.benchmark(config(tmp_path, gpu_report=True)) == {"epochs": 2}
