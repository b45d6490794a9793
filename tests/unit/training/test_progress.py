import io
import re
import time
from types import SimpleNamespace

import pytest
import torch

from s10_resnet.training import progress
from s10_resnet.training.progress import Progress
from s10_resnet.training.state import EpochMetrics, RunningMetrics
from s10_resnet.utils.runtime import init_runtime

METRICS = EpochMetrics(
    epoch=1,
    train_loss=1.25,
    train_accuracy=0.5,
    eval_loss=1.5,
    eval_accuracy=0.4375,
    lr=0.005,
    train_seconds=2.0,
    eval_seconds=0.5,
    images_per_second=1234.5,
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def make_state(epochs=0, kind=RunningMetrics):
    """What a progress reads of a training's state, after some epochs of three steps."""
    return SimpleNamespace(step=3 * epochs, history=[METRICS] * epochs, metrics=kind(init_runtime("cpu", "fp32")))


def take_step(state):
    state.metrics.update(torch.tensor(0.5), torch.eye(10)[:4], torch.arange(4))
    state.step += 1


def train(shown, state, epochs=1):
    shown.start(state)
    for _ in range(epochs):
        for _ in range(3):
            take_step(state)
            shown.on_step(state)
        state.metrics = RunningMetrics(init_runtime("cpu", "fp32"))
        state.history.append(METRICS)
        shown.on_epoch_end(state)
    shown.close()


def make(epochs=24, split="test", **options):
    return Progress(epochs, images=12, steps_per_epoch=3, eval_split=split, **options)


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_log_gets_a_table_of_epochs(capsys, split):
    train(make(split=split), make_state(), epochs=2)
    out, err = capsys.readouterr()
    header, *lines = out.splitlines()
    assert (err, len(lines)) == ("", 2)
    titles = ["epoch", "train loss", "train acc", f"{split} loss", f"{split} acc", "lr", "images/s", "remaining"]
    cells = ["1/24", "1.2500", "50.00%", "1.5000", "43.75%", "5.00e-03", "1,234", lines[0].split()[-1]]
    position = 0
    for title, cell in zip(titles, cells, strict=True):  # each cell ends below the end of its title
        position = header.index(title, position) + len(title)
        assert lines[0][:position].endswith(cell)


@pytest.mark.parametrize("loss", [1234.5678, 4.6e18])
def test_lines_fit_into_80_columns(capsys, loss):
    state = make_state()
    shown = Progress(999, images=50_000, steps_per_epoch=10_000, eval_split="test")
    big = {"epoch": 999, "train_loss": loss, "eval_loss": loss, "train_accuracy": 1.0, "eval_accuracy": 1.0}
    shown.start(state)
    state.step, state.history = 9_990_000, [EpochMetrics(**{**vars(METRICS), **big, "images_per_second": 123456.7})]
    shown.on_epoch_end(state)
    for line in capsys.readouterr().out.splitlines():
        assert len(line) <= 80


def test_one_of_many_trainings_prints_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "ESTIMATE_SECONDS", 0.0)
    train(make(lines=False), make_state(), epochs=2)
    assert capsys.readouterr() == ("", "")


def test_within_an_epoch_a_log_gets_an_estimate_and_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(progress, "ESTIMATE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    shown, state = make(), make_state(epochs=1)
    shown.start(state)
    for _ in range(2):
        take_step(state)
        shown.on_step(state)
    _, estimate, first, second = capsys.readouterr().out.splitlines()  # the estimate comes once
    assert re.fullmatch(r"estimated time for the remaining epochs: \d\d:\d\d", estimate)
    assert first.startswith("epoch 2, step 1 of 3: loss 0.500, accuracy 100.0%, ")
    assert second.startswith("epoch 2, step 2 of 3: ")


def test_the_remaining_time_of_a_resumed_run_comes_from_its_own_steps(capsys):
    shown, state = make(epochs=5), make_state(epochs=3)
    shown.start(state)
    shown.started -= 30
    for _ in range(3):
        take_step(state)
    state.history.append(METRICS)
    shown.on_epoch_end(state)  # 3 of 6 steps in 30 s
    assert capsys.readouterr().out.splitlines()[-1].endswith(" 00:30")


def test_a_terminal_gets_a_bar_over_the_run_and_one_over_the_epoch(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0)
    train(make(), make_state(epochs=1))
    drawn = screen.getvalue()
    for part in ("run:", "1/24", "2/24", "epoch 2:", "loss 0.500", "accuracy 100.0%", "12/12"):
        assert part in drawn


def test_without_a_terminal_steps_do_not_wait_for_the_device():
    class Unread(RunningMetrics):
        @property
        def loss(self):
            pytest.fail("reading the loss waits for the device")

        accuracy = loss

    shown, state = make(), make_state(kind=Unread)
    shown.start(state)
    for _ in range(3):
        take_step(state)
        shown.on_step(state)
    assert time.perf_counter() - shown.started < 60
