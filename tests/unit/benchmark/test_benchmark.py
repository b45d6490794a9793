import contextlib
import json
from dataclasses import replace

import pytest

from s10_resnet.benchmark import baseline_timer as textbook_timer
from s10_resnet.benchmark import benchmark, growth, profiling, stages
from s10_resnet.benchmark.stages import Stage
from s10_resnet.data import dataset as data
from s10_resnet.data import synthetic
from s10_resnet.data.dataset import Split
from s10_resnet.errors import InputError
from s10_resnet.options import Benchmark
from s10_resnet.training import session
from s10_resnet.utils import console as terminal

TIMES = {
    "pipeline": Stage("input pipeline, one core", 1000, [0.5, 0.25, 0.1], [1.0, 1.0, 1.0]),
    "step": Stage("training step", 400, [2.0, 1.0, 4.0], [4.0, 8.0, 1.0]),
    "epoch": Stage("whole epoch", 450, [2.5, 3.0, 2.0], [5.0, 5.0, 50.0]),
    "process": Stage("whole process, --epochs 2", 900, [9.0], [18.0]),
}


@pytest.fixture(scope="module")
def parts():
    return tuple(Split(*synthetic.draw(450, seed), synthetic.CLASSES) for seed in (1, 2))


@pytest.fixture
def asked(monkeypatch, parts):
    """How often each stage is asked for, of which settings."""
    log = {}
    monkeypatch.setattr(data, "load_synthetic", lambda: parts)

    def stage(name):
        def timed(run, repeats, textbook):
            assert textbook == "textbook"
            log[name] = repeats
            log["config"] = run.config
            return TIMES[name]

        return timed

    for name in TIMES:
        monkeypatch.setattr(stages, name, stage(name))
    monkeypatch.setattr(textbook_timer, "started", lambda run: contextlib.nullcontext("textbook"))
    monkeypatch.setattr(stages, "matrix_product", lambda run, repeats: [1e12, 4e12, 2e12])
    monkeypatch.setattr(stages, "flops_per_image", lambda network: 1e9)
    return log


def options(folder, **changes):
    settings = {"dataset": "synthetic", "device": "cpu", "limit": 450, "batch_size": 100, "epochs": 2, "repeats": 3}
    return Benchmark(**{**settings, "output_dir": folder, "name": "b", **changes})


def test_the_numbers_add_up(asked, tmp_path, capsys):
    content = benchmark.benchmark(options(tmp_path))
    assert json.loads((tmp_path / "b" / "benchmark.json").read_text()) == content
    by_name = {stage["name"]: stage for stage in content["stages"]}
    assert list(by_name) == [stage.name for stage in TIMES.values()]
    step = by_name["training step"]
    assert (step["package"], step["textbook"]) == ([2.0, 1.0, 4.0], [4.0, 8.0, 1.0])
    assert (step["package_images_per_second"], step["textbook_images_per_second"], step["ratio"]) == (200, 100, 2)
    assert content["training_step"] == 200 * 1e9
    assert content["matrix_product"] == 2e12
    assert content["data_share"] == pytest.approx(1 - 180 / 200)
    assert content["settings"]["batch_size"] == 100
    assert content["versions"]["torch"]
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("synthetic: 450 training images in batches of 100; cpu, ")
    assert out[0].endswith(", 0 workers; the textbook script: fp32, 0 workers")
    table = [line.split() for line in out if line]
    assert ["package", "textbook", "ratio", "n"] in table
    assert ["training", "step", "200", "images/s", "100", "images/s", "2.00", "3"] in table
    assert ["whole", "process,", "--epochs", "2", "9.0", "s", "18.0", "s", "2.00", "1"] in table
    assert "a training step: 1.00 GFLOP an image, 0.20 TFLOP/s, 10% of a " in out[-3]
    assert out[-2] == "the way of the data: 10.0% of an epoch"
    assert out[-1] == f"see {tmp_path / 'b' / 'benchmark.json'}"


def test_the_settings_reach_the_stages(asked, tmp_path):
    benchmark.benchmark(options(tmp_path, workers=2, augment_on="cpu"))
    assert {name: asked[name] for name in TIMES} == {"pipeline": 3, "step": 3, "epoch": 3, "process": 1}
    config = asked["config"]
    assert (config.epochs, config.batch_size, config.limit, config.workers) == (2, 100, 450, 2)
    assert (config.dataset, config.device) == ("synthetic", "cpu")


def test_quick_is_small(asked, tmp_path):
    content = benchmark.benchmark(
        Benchmark(quick=True, dataset="synthetic", device="cpu", output_dir=tmp_path, name="b")
    )
    config = asked["config"]
    assert (config.epochs, config.batch_size, config.limit, asked["step"]) == (1, 128, 512, 3)
    assert content["settings"]["limit"] == 512


@pytest.mark.parametrize("name", ["repeats", "epochs", "batch_size", "limit"])
def test_quick_says_that_it_sets_what_was_given(name):
    line = f"^--{name.replace('_', '-')} 77: must be left out with --quick, which sets it$"
    with pytest.raises(InputError, match=line):
        Benchmark(quick=True, **{name: 77})
    assert getattr(Benchmark(**{name: 77}), name) == 77


@pytest.mark.parametrize("idle", [0.0425, None])
def test_an_epoch_is_profiled_where_it_is_asked_for(asked, tmp_path, monkeypatch, capsys, idle):
    monkeypatch.setattr(profiling, "epoch", lambda run: ("a table\n", idle))
    content = benchmark.benchmark(options(tmp_path, profile=True))
    assert (tmp_path / "b" / "profile.txt").read_text() == "a table\n"
    assert content["idle_share"] == idle
    told = "the device has nothing to do: 4.2% of an epoch, under the profiler" in capsys.readouterr().out
    assert told == (idle is not None)
    assert "idle_share" not in benchmark.benchmark(options(tmp_path, name="a"))
    assert not (tmp_path / "a" / "profile.txt").exists()


def test_growth_is_watched_where_it_is_asked_for(asked, tmp_path, monkeypatch, capsys):
    course = [
        {"memory": memory * 2**20, "device_memory": 0, "handles": 7, "processes": 0, "threads": threads}
        for memory, threads in ((100, 1), (1200, 3), (1300, 4))
    ]
    line = {"epochs": [8, 16], "seconds": [10.0, 18.0], "start_up": 2.0, "epoch": 1.0, "off_line": 0.0125}
    content = {"line": line, "over_epochs": course, "over_runs": course[:2]}
    monkeypatch.setattr(growth, "measure", lambda config: content)
    assert "growth" not in benchmark.benchmark(options(tmp_path, name="a"))
    assert benchmark.benchmark(options(tmp_path, growth=True))["growth"] == content
    assert json.loads((tmp_path / "b" / "benchmark.json").read_text())["growth"] == content
    out = capsys.readouterr().out.splitlines()
    assert out[-4] == (
        "time of epochs: 10.0 s for 8, 18.0 s for 16; at most 1.2% off the line of 2.0 s and 1.00 s an epoch"
    )
    same = "device memory 0 to 0, handles 7 to 7, processes 0 to 0, threads"
    assert out[-3] == f"from the second of 3 epochs to the last: memory 1,200 to 1,300 MiB, {same} 3 to 4"
    assert out[-2] == f"from the second of 2 runs to the last: memory 1,200 to 1,200 MiB, {same} 3 to 3"


def test_bad_settings_leave_nothing(asked, tmp_path):
    with pytest.raises(InputError, match=r"^--batch-size 500: must be at most"):
        benchmark.benchmark(options(tmp_path, batch_size=500))
    assert not list(tmp_path.iterdir())
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match=r"^--name b: must be a new name"):
        benchmark.benchmark(options(tmp_path))
    assert asked == {}


def test_a_benchmark_shows_how_far_it_is(asked, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(terminal, "bar", lambda items, *more: shown.append(more) or iter(items))
    benchmark.benchmark(options(tmp_path))
    assert shown == [(4, "timing", "stage")]


def test_two_processes_are_refused(asked, tmp_path, monkeypatch):
    begun = session.begin

    def two(config):
        run = begun(config)
        return run._replace(runtime=replace(run.runtime, world_size=2))

    monkeypatch.setattr(session, "begin", two)
    with pytest.raises(InputError, match="torchrun"):
        benchmark.benchmark(options(tmp_path))
