"""How fast the package is on this machine, beside the textbook script and beside what the machine gives at most."""

from __future__ import annotations

from dataclasses import asdict, replace
from statistics import median
from typing import Any

from s10_resnet.benchmark import baseline_timer as textbook_timer
from s10_resnet.benchmark import growth, profiling, stages
from s10_resnet.benchmark.stages import Stage
from s10_resnet.config import Config
from s10_resnet.errors import InputError
from s10_resnet.options import QUICK, Benchmark
from s10_resnet.training import session
from s10_resnet.training.session import Session
from s10_resnet.utils import console as terminal
from s10_resnet.utils import outputs, signals
from s10_resnet.utils.io import write_whole


@signals.heeded()
def benchmark(options: Benchmark) -> dict[str, Any]:
    """Times each stage, prints a table, and leaves all times as ``benchmark.json`` in a new folder.

    Returns:
        The content of that file: ``stages``, each with its times in seconds, rates in images a second and the ratio;
        ``matrix_product`` and ``training_step`` in FLOP/s; ``data_share`` of an epoch that the way of the data costs;
        with ``profile`` the ``idle_share`` of `s10_resnet.benchmark.profiling`, with ``growth``
        what `s10_resnet.benchmark.growth` gives.

    Raises:
        InputError: For settings that do not fit the machine or the data; nothing has been written then.
        MachineError: If a whole process fails.
    """
    if options.quick:
        options = replace(options, **QUICK)
    shared = ("epochs", "batch_size", "limit", "dataset", "data_dir", "device", "augment_on", "workers")
    run = session.begin(Config(**{name: getattr(options, name) for name in shared}))
    if run.runtime.world_size > 1:
        raise InputError("torchrun: is not for the benchmark, which times one process")
    folder = outputs.make_run_folder(options.output_dir, options.name, "benchmark")
    terminal.say(
        f"{run.dataset}: {len(run.train.labels):,} training images in batches of {options.batch_size:,}; "
        f"{run.runtime.device}, {run.runtime.precision}, {run.workers} workers; the textbook script: fp32, "
        f"{textbook_timer.workers(run)} workers"
    )
    parts = (
        (stages.pipeline, options.repeats),
        (stages.step, options.repeats),
        (stages.epoch, options.repeats),
        (stages.process, 1),
    )
    with textbook_timer.started(run) as textbook:
        measured = [
            stage(run, times, textbook) for stage, times in terminal.bar(parts, len(parts), "timing", "stage")
        ]  # in this order: the step warms up what the epoch uses
    content = _content(options, run, measured)
    if options.profile:
        table, content["idle_share"] = profiling.epoch(run)
        write_whole(folder / "profile.txt", table.encode())
    if options.growth:
        content["growth"] = growth.measure(run.config)
    outputs.write_json(folder / "benchmark.json", content)
    _say(content)
    terminal.say(f"see {folder / 'benchmark.json'}")
    return content


def _content(options: Benchmark, run: Session, measured: list[Stage]) -> dict[str, Any]:
    product = stages.matrix_product(run.runtime, options.repeats)
    flops = stages.flops_per_image(session.network(run))
    _, step, epoch, _ = measured
    return {
        "settings": options.to_json(),
        "stages": [
            {
                **asdict(stage),
                "package_images_per_second": stage.rates[0],
                "textbook_images_per_second": stage.rates[1],
                "ratio": stage.ratio,
            }
            for stage in measured
        ],
        "flops_per_image": flops,
        "training_step": flops * step.rates[0],
        "matrix_product": median(product),
        "matrix_products": product,
        "data_share": 1 - epoch.rates[0] / step.rates[0],
        "workers": run.workers,
        "textbook_workers": textbook_timer.workers(run),
        **run.environment,
    }


def _say(content: dict[str, Any]) -> None:
    rows = [["", "package", "textbook", "ratio", "n"]]
    for stage in content["stages"]:
        cells = [f"{stage[f'{side}_images_per_second']:,.0f} images/s" for side in ("package", "textbook")]
        if stage["name"].startswith(stages.PROCESS):
            cells = [f"{median(stage[side]):,.1f} s" for side in ("package", "textbook")]
        rows.append([stage["name"], *cells, f"{stage['ratio']:.2f}", str(len(stage["package"]))])
    terminal.say("\n".join(["", *terminal.aligned(rows), ""]))
    rate, most = content["training_step"], content["matrix_product"]
    terminal.say(
        f"a training step: {content['flops_per_image'] / 1e9:.2f} GFLOP an image, {rate / 1e12:,.2f} TFLOP/s, "
        f"{rate / most:.0%} of a {content['precision']} matrix product's {most / 1e12:,.2f}"
    )
    terminal.say(f"the way of the data: {content['data_share']:.1%} of an epoch")
    if content.get("idle_share") is not None:
        terminal.say(f"the device has nothing to do: {content['idle_share']:.1%} of an epoch, under the profiler")
    if "growth" in content:
        _say_growth(**content["growth"])


def _say_growth(line: dict[str, Any], over_epochs: list[dict[str, int]], over_runs: list[dict[str, int]]) -> None:
    times = ", ".join(f"{seconds:.1f} s for {n}" for n, seconds in zip(line["epochs"], line["seconds"], strict=True))
    terminal.say(
        f"time of epochs: {times}; at most {line['off_line']:.1%} off the line of {line['start_up']:.1f} s and "
        f"{line['epoch']:.2f} s an epoch"
    )
    for what, course in (("epochs", over_epochs), ("runs", over_runs)):
        second, last = course[1], course[-1]  # the first of anything fills caches
        shown = [f"memory {second['memory'] / 2**20:,.0f} to {last['memory'] / 2**20:,.0f} MiB"]
        shown += [f"{name.replace('_', ' ')} {second[name]:,} to {last[name]:,}" for name in second if name != "memory"]
        terminal.say(f"from the second of {len(course)} {what} to the last: {', '.join(shown)}")
