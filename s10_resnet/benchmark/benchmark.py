"""How fast training is on this machine, stage by stage, beside the baseline script and a matrix product."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import cycle, islice, repeat
from math import ceil
from statistics import median
from typing import Any, TextIO, cast

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from s10_resnet.arguments import to_flags
from s10_resnet.benchmark.baseline import PIPELINE_IMAGES, single_thread
from s10_resnet.benchmark.gpu_report import create_gpu_report, run_module, start_module
from s10_resnet.config import QUICK, BenchmarkConfig, TrainConfig
from s10_resnet.data.loader import iterate_batches
from s10_resnet.errors import EnvironmentFailure, InputError
from s10_resnet.training.loop import train_one_epoch
from s10_resnet.training.setup import Setup, create_setup
from s10_resnet.training.state import TrainingState
from s10_resnet.utils.console import format_table, logger, progress_bar
from s10_resnet.utils.io import atomic_write, create_run_dir, write_json
from s10_resnet.utils.launch import launch_env
from s10_resnet.utils.runtime import DTYPES, Runtime, default_num_workers
from s10_resnet.utils.signals import graceful_shutdown

BASELINE = "s10_resnet.benchmark.baseline"
MAX_LR = 5e-3
# The settings of the baseline script, so that both do the same work.
BASELINE_SETTINGS: dict[str, Any] = {"flip": "random", "cutout_size": 8, "dirac_init": False, "whitening_init": False}
UNLIMITED = 10_000  # epochs: the schedule of a measurement never ends
CPU_MATMUL_SIZES = (1024, 2048, 4096)  # rows and columns; which is the fastest depends on the machine
MATMUL_SIZES = (4096, 8192, 16384)  # on a GPU
MATMUL_SECONDS = 0.5  # of a measurement: long enough for clocks and power to settle
PROFILE_ROWS = 30

Timer = Callable[[], float]  # returns the seconds of what it does
BaselineTimer = Callable[[str], float]  # from the name of a stage to the seconds of the baseline script


@graceful_shutdown()
def benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Times each stage of training, prints a table, and writes all times to ``benchmark.json`` in a new folder.

    Returns:
        The content of that file. ``stages``: see `compare`. ``achieved_flops`` of a training step and
        ``peak_matmul_flops``, see `measure_matmul`, in FLOP/s. ``data_loading_share``: fraction of an epoch. With
        ``profile``, ``idle_share``: see `profile_epoch`. With ``gpu_report``, see
        `s10_resnet.benchmark.gpu_report.create_gpu_report` instead.

    Raises:
        InputError: For settings that do not fit the machine or the data; nothing has been written then.
        EnvironmentFailure: If a timed process fails.
        ShutdownRequested: After Ctrl-C or SIGTERM.
    """
    if launch_env().world_size > 1:
        raise InputError("torchrun: a benchmark runs in a single process")
    if config.quick:
        config = config.replace(**QUICK)
    if config.gpu_report:
        return create_gpu_report(config)
    shared = BenchmarkConfig.model_fields.keys() & TrainConfig.model_fields.keys()
    settings: dict[str, Any] = {name: getattr(config, name) for name in shared}
    setup = create_setup(TrainConfig(**settings, **BASELINE_SETTINGS))
    run_dir = create_run_dir(config.output_dir, config.name, "benchmark")
    logger.info(setup.description)
    logger.info(f"batches of {config.batch_size:,}; the baseline script: fp32, {baseline_workers(setup)} workers")
    with baseline_process(setup) as baseline:
        measures = (measure_pipeline, measure_step, measure_epoch, measure_process)  # the step warms up for the epoch
        stages = []
        for measure in progress_bar(measures, desc="timing", unit="stage"):
            start = time.perf_counter()
            stages.append(measure(setup, baseline, config.repeats))
            logger.info(f"timed in {time.perf_counter() - start:.0f} s: {stages[-1]['name']}")
    _, step, epoch, _ = (stage["package_images_per_second"] for stage in stages)
    sizes = CPU_MATMUL_SIZES if setup.runtime.device.type == "cpu" else MATMUL_SIZES
    peak = max(measure_matmul(size, setup.runtime, config.repeats) for size in sizes)
    flops_per_image = count_flops_per_image(setup.build_model())
    content = {
        "settings": config.to_json(),
        "stages": stages,
        "flops_per_image": flops_per_image,
        "achieved_flops": flops_per_image * step,
        "peak_matmul_flops": peak,
        "data_loading_share": 1 - epoch / step,
        "workers": setup.workers,
        "baseline_workers": baseline_workers(setup),
        **setup.environment,
    }
    if config.profile:
        table, content["idle_share"] = profile_epoch(setup)
        atomic_write(run_dir / "profile.txt", table.encode())
    write_json(run_dir / "benchmark.json", content)
    _log_results(content)
    logger.info(f"see {run_dir / 'benchmark.json'}")
    return content


def measure_pipeline(setup: Setup, baseline: BaselineTimer, repeats: int) -> dict[str, Any]:
    """From arrays to augmented batches: on one core, or on the device if the package augments there."""
    loader, batch_size = setup.build_loader(epochs=1), setup.config.batch_size
    full = [spec for spec in loader.sampler if len(spec.indices) == batch_size]
    specs = list(islice(cycle(full), ceil(PIPELINE_IMAGES / batch_size)))
    where = "one core" if setup.augment_on == "cpu" else f"on {setup.runtime.device}"

    def package() -> None:
        for spec in specs:
            loader.dataset[spec]
        _synchronize(setup.runtime.device)

    name, images = f"input pipeline, {where}", batch_size * len(specs)
    with single_thread():
        return compare(name, images, lambda: _time(package), lambda: baseline("pipeline"), repeats)


def measure_step(setup: Setup, baseline: BaselineTimer, repeats: int) -> dict[str, Any]:
    """As many training steps as an epoch has full batches, on a batch that is on the device."""
    steps = len(setup.train.labels) // setup.config.batch_size
    state, criterion = _build_state(setup), setup.build_criterion()
    loader = setup.build_loader(epochs=1)
    images, labels = loader.dataset[next(iter(loader.sampler))]
    batch = images.to(setup.runtime.device), labels.to(setup.runtime.device)

    def package() -> None:
        train_one_epoch(state, repeat(batch, steps), criterion)

    images_per_run = steps * setup.config.batch_size
    return compare("training step", images_per_run, lambda: _time(package), lambda: baseline("step"), repeats)


def measure_epoch(setup: Setup, baseline: BaselineTimer, repeats: int) -> dict[str, Any]:
    """A whole epoch of training with its data loading, without the evaluation.

    The package's workers go on from epoch to epoch, so the epoch in which they start is not timed. The baseline's
    start anew in every epoch.
    """
    state, criterion = _build_state(setup), setup.build_criterion()
    warm_up = setup.steps_per_epoch if setup.workers else 0

    def package() -> float:
        with iterate_batches(setup.build_loader(epochs=2 if warm_up else 1)) as batches:
            train_one_epoch(state, islice(batches, warm_up), criterion)
            return _time(lambda: train_one_epoch(state, batches, criterion))

    return compare("whole epoch", len(setup.train.labels), package, lambda: baseline("epoch"), repeats)


def measure_process(setup: Setup, _: BaselineTimer, __: int) -> dict[str, Any]:
    """The whole script once: imports, data, training, an evaluation per epoch; the package's files, too."""
    epochs = cast(TrainConfig, setup.config).epochs
    with tempfile.TemporaryDirectory() as folder:
        own = {"workers": setup.workers, "augment_on": setup.augment_on, "output_dir": folder, "epochs": epochs}
        train = ["s10_resnet", "train", *to_flags({**_shared_flags(setup), **own, **BASELINE_SETTINGS})]
        script = [BASELINE, *_baseline_flags(setup), "--epochs", str(epochs)]
        package, baseline = (partial(_time, partial(run_module, args)) for args in (train, script))
        name, images = f"whole process, --epochs {epochs}", epochs * len(setup.train.labels)
        return compare(name, images, package, baseline, repeats=1, warm_up=0)


def compare(name: str, images: int, package: Timer, baseline: Timer, repeats: int, warm_up: int = 1) -> dict[str, Any]:
    """Times both in turn, so that a machine whose speed varies is as slow for the one as for the other.

    Each time, ``images`` training images go through the stage. The first ``warm_up`` times do not count.

    Returns:
        All seconds, images per second by the medians, and ``ratio``, how many times faster the package is.
    """
    pairs = [(package(), baseline()) for _ in range(warm_up + repeats)][warm_up:]
    times = {"package": [pair[0] for pair in pairs], "baseline": [pair[1] for pair in pairs]}
    rates = {f"{side}_images_per_second": images / median(seconds) for side, seconds in times.items()}
    ratio = median(times["baseline"]) / median(times["package"])
    return {"name": name, "images": images, **times, **rates, "ratio": ratio}


def measure_matmul(size: int, runtime: Runtime, repeats: int) -> float:
    """Returns the best rate of a square matrix product in the training's precision, in FLOP/s.

    It is no upper bound of a training step: some algorithms of convolutions need fewer operations than are counted.
    """
    a, b = torch.randn(2, size, size, device=runtime.device).to(DTYPES[runtime.precision])
    product = torch.empty_like(a)

    def multiply(times: int) -> None:
        for _ in range(times):
            torch.mm(a, b.T, out=product)  # as in a linear layer
        _synchronize(runtime.device)

    multiply(3)
    times = max(1, round(MATMUL_SECONDS / _time(partial(multiply, 1))))
    return 2 * size**3 * times / min(_time(partial(multiply, times)) for _ in range(repeats))


def count_flops_per_image(model: nn.Module) -> float:
    """Returns the FLOPs of a training step per image: forward, and backward except for the gradient of the pixels."""
    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 32, 32, 3, dtype=torch.uint8, device=device)).sum().backward()
    return counter.get_total_flops() / 2


def profile_epoch(setup: Setup) -> tuple[str, float | None]:
    """Trains two epochs and profiles the second with `torch.profiler`, which slows it down.

    Returns:
        A table of the operations that take longest, and the fraction of the epoch in which a CUDA device runs no kernel
        and copies nothing; None without such a device.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler's library writes about itself to stderr
    state, criterion = _build_state(setup), setup.build_criterion()
    on_cuda = setup.runtime.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with iterate_batches(setup.build_loader(epochs=2)) as batches:
        train_one_epoch(state, islice(batches, setup.steps_per_epoch), criterion)
        with profile(activities=activities) as profiler:
            seconds = _time(lambda: train_one_epoch(state, batches, criterion))
    order = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=PROFILE_ROWS, max_name_column_width=60)
    if not on_cuda:
        return table, None
    spans = [event.time_range for event in profiler.events() if event.device_type == DeviceType.CUDA]
    return table, 1 - covered_length((span.start, span.end) for span in spans) / (1e6 * seconds)


def covered_length(spans: Iterable[tuple[float, float]]) -> float:
    """Returns the length of the union of intervals, each given by its start and end."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


@contextmanager
def baseline_process(setup: Setup) -> Iterator[BaselineTimer]:
    """Starts the baseline script in a process of its own, free of what the package does to its process.

    Yields:
        Its timer of the stages ``pipeline``, ``step`` and ``epoch``, which raises `EnvironmentFailure` if it has ended.
    """
    args = [BASELINE, "--time-stages", *_baseline_flags(setup)]
    with start_module(args, stdin=subprocess.PIPE, stderr=None, bufsize=0) as process:
        stdin, stdout = cast(TextIO, process.stdin), cast(TextIO, process.stdout)

        def measure(stage: str) -> float:
            try:
                stdin.write(f"{stage}\n")
                return float(stdout.readline())
            except (OSError, ValueError):
                raise EnvironmentFailure("the baseline script ended early") from None

        yield measure


def baseline_workers(setup: Setup) -> int:
    """Workers of the baseline script: the package's, or what it would have to augment on the CPU."""
    return setup.workers if setup.augment_on == "cpu" else default_num_workers(setup.runtime.device)


def _baseline_flags(setup: Setup) -> list[str]:
    return to_flags({**_shared_flags(setup), "workers": baseline_workers(setup)})


def _time(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def _build_state(setup: Setup) -> TrainingState:
    return replace(setup, config=setup.config.replace(epochs=UNLIMITED)).build_state(MAX_LR)


def _shared_flags(setup: Setup) -> dict[str, Any]:
    """What the package and the baseline script train on, and with which settings."""
    return {
        "dataset": setup.dataset,
        "data_dir": setup.config.data_dir,
        "max_train_samples": len(setup.train.labels),
        "batch_size": setup.config.batch_size,
        "max_lr": MAX_LR,
        "device": setup.runtime.device,
    }


def _log_results(content: dict[str, Any]) -> None:
    rows = [["", "package", "baseline", "ratio", "n"]]
    for stage in content["stages"]:
        if stage["name"].startswith("whole process"):
            cells = [f"{median(stage[side]):,.1f} s" for side in ("package", "baseline")]
        else:
            cells = [f"{stage[f'{side}_images_per_second']:,.0f} images/s" for side in ("package", "baseline")]
        rows.append([stage["name"], *cells, f"{stage['ratio']:.2f}", str(len(stage["package"]))])
    logger.info("\n".join(["", *format_table(rows), ""]))
    achieved, peak = (content[f"{name}_flops"] / 1e12 for name in ("achieved", "peak_matmul"))
    logger.info(f"training step: {content['flops_per_image'] / 1e9:.2f} GFLOP per image, {achieved:,.2f} TFLOP/s")
    logger.info(f"fastest {content['precision']} matrix product: {peak:,.2f} TFLOP/s")
    share = content["data_loading_share"]
    logger.info(f"data loading: {f'{share:.1%} of an epoch' if share > 0 else 'less than can be measured'}")
    if content.get("idle_share") is not None:
        logger.info(f"the device is idle for {content['idle_share']:.1%} of an epoch under the profiler")
