import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from s10_resnet.benchmark import profiling, timing
from s10_resnet.data import loader as batches
from s10_resnet.training import loop as engine
from s10_resnet.training import session
from tests.runs import small


@pytest.mark.parametrize(
    ("spans", "length"),
    [
        ([], 0),
        ([(1, 3)], 2),
        ([(4, 6), (1, 3)], 4),
        ([(1, 5), (2, 3)], 4),  # one within the other
        ([(1, 3), (2, 6), (6, 7)], 6),
    ],
)
def test_what_is_covered_counts_once(spans, length):
    assert profiling.covered(spans) == length


def test_random_spans_against_a_count_of_moments():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        ends = torch.randint(0, 40, (6, 2), generator=generator).sort(1).values.tolist()
        assert profiling.covered(map(tuple, ends)) == len({moment for a, b in ends for moment in range(a, b)})


def test_the_second_epoch_is_profiled_and_named_by_operation(small_parts, tmp_path, monkeypatch, capfd):
    sizes, steps = [], engine.train_steps

    def noted(state, stream, criterion):
        sizes.append([])
        return steps(state, (sizes[-1].append(len(batch[1])) or batch for batch in stream), criterion)

    monkeypatch.setattr(engine, "train_steps", noted)
    table, idle = profiling.epoch(session.begin(small(tmp_path)))
    assert sizes == [[25, 25, 10]] * 2
    assert idle is None
    assert capfd.readouterr().err == ""
    row = next(line for line in table.splitlines() if "aten::convolution_backward " in line)
    assert row.split()[-1] == "3"  # calls: one a step of the one epoch


def test_idle_is_what_no_kernel_covers(small_parts, tmp_path, monkeypatch):
    spans = [(DeviceType.CUDA, 100, 300), (DeviceType.CUDA, 200, 500), (DeviceType.CPU, 0, 1000)]
    events = [SimpleNamespace(device_type=d, time_range=SimpleNamespace(start=a, end=b)) for d, a, b in spans]
    table = SimpleNamespace(table=lambda **how: how["sort_by"])
    profiled = SimpleNamespace(events=lambda: events, key_averages=lambda: table)
    asked = []
    monkeypatch.setattr(
        profiling, "profile", lambda activities: asked.append(activities) or contextlib.nullcontext(profiled)
    )
    monkeypatch.setattr(timing, "seconds", lambda *_: 0.001)
    monkeypatch.setattr(batches, "running", lambda loader: contextlib.nullcontext(iter(())))
    run = session.begin(small(tmp_path))
    monkeypatch.setattr(session, "training_state", lambda *_: None)
    monkeypatch.setattr(engine, "train_steps", lambda *_: iter(()))
    there = run._replace(runtime=replace(run.runtime, device=torch.device("cuda")))
    assert profiling.epoch(there) == ("self_device_time_total", pytest.approx(0.6))
    assert torch.profiler.ProfilerActivity.CUDA in asked[0]
