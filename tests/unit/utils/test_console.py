import io

import pytest
import torch

from s10_resnet.training.state import EpochRecord, Totals
from s10_resnet.utils import console as terminal
from s10_resnet.utils import runtime

RECORD = EpochRecord(
    epoch=2,
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


def steps_of(count):
    totals = Totals(runtime.start("cpu", "fp32"))
    for _ in range(count):
        totals.add(torch.tensor(0.5), torch.eye(10)[:4], torch.arange(4))
        totals.lr = 0.003
        yield totals


def test_a_log_gets_one_plain_line_an_epoch(capsys):
    with terminal.Progress(24, images=12, split="test") as progress:
        assert len(list(progress.watch(steps_of(3)))) == 3
        progress.report(RECORD)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 1
    for part in ("epoch  2/24", "1.2500", "50.00%", "test loss 1.5000", "43.75%", "5.00e-03", "1,234 images/s", "left"):
        assert part in out
    assert "\r" not in out


def test_the_line_names_the_evaluation_images(capsys):
    with terminal.Progress(24, images=12, split="val") as progress:
        progress.report(RECORD)
    assert "val loss 1.5000" in capsys.readouterr().out


def test_a_terminal_gets_a_bar_over_the_run_and_one_over_the_epoch(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with terminal.Progress(24, images=12, split="test") as progress:
        list(progress.watch(steps_of(3)))
    drawn = screen.getvalue()
    assert "run:" in drawn
    assert "0/24" in drawn
    assert "epoch 1:" in drawn


def test_the_bar_shows_loss_accuracy_and_rate(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(terminal, "REFRESH_SECONDS", 0)
    with terminal.Progress(24, images=12, split="test") as progress:
        list(progress.watch(steps_of(3)))
    drawn = screen.getvalue()
    for part in ("loss 0.500", "accuracy 100.0%", "lr 3.00e-03", "images/s", "12/12"):
        assert part in drawn


def test_without_a_terminal_the_device_is_not_asked_for_totals(monkeypatch):
    def asked(self):
        pytest.fail("reading the loss waits for the device")

    monkeypatch.setattr(Totals, "loss", property(asked))
    with terminal.Progress(1, images=12, split="test") as progress:
        list(progress.watch(steps_of(3)))


def test_a_warning_stands_out(capsys):
    terminal.warn("two\nlines")
    out, err = capsys.readouterr()
    assert out == ""
    assert "WARNING: two\nlines" in err
    assert err.count("!" * 40) >= 2


def test_a_bar_passes_everything_on(capsys):
    assert list(terminal.bar(iter(range(5)), total=5, description="range test", unit="step")) == list(range(5))
    assert capsys.readouterr().err == ""


def test_the_time_left_of_a_resumed_run_comes_from_what_was_trained_since(capsys, monkeypatch):
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: next(clock))
    with terminal.Progress(24, images=12, split="test", done=1) as progress:
        progress.report(RECORD)  # of epoch 2, the first since
    assert "00:10 gone, 03:40 left" in capsys.readouterr().out
