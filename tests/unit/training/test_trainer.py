"""Stops and failures, and that a run goes on after them."""

import errno
import json
import math
import signal

import pytest
import torch

from s10_resnet.data import dataset as data
from s10_resnet.errors import MachineError, TrainingError
from s10_resnet.reporting import figures as report
from s10_resnet.training import loop as engine
from s10_resnet.training import recipe
from s10_resnet.training import run_logger as notes
from s10_resnet.training.state import Totals
from s10_resnet.utils import outputs, runtime, signals
from s10_resnet.utils import serialization as checkpoint
from tests.outcome import outcome
from tests.runs import FILES, PICTURES, at_call, rows, small, small_network

pytestmark = pytest.mark.usefixtures("small_parts")


def test_without_a_loss_that_is_a_number_there_is_no_summary_to_boast_of(tmp_path, monkeypatch):
    def infinite(*arguments):
        return math.inf, 0.9, None

    monkeypatch.setattr(engine, "evaluate", infinite)
    with pytest.raises(TrainingError, match="epoch 1: the loss of the evaluation is not a finite number; --max-lr"):
        recipe.train(small(tmp_path))
    assert not {"summary.json", "history.csv", "best.pt"} & {path.name for path in (tmp_path / "run").iterdir()}


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_what_was_good(tmp_path, monkeypatch):
    finite, calls = engine.nn.CrossEntropyLoss.forward, []

    def forward(self, logits, labels):
        calls.append(1)
        return finite(self, logits, labels) * (math.nan if len(calls) == 6 else 1)

    monkeypatch.setattr(engine.nn.CrossEntropyLoss, "forward", forward)  # 3 steps, 1 evaluation, then the second step
    with pytest.raises(TrainingError, match="epoch 2, step 2: the loss is no longer a finite number; --max-lr"):
        recipe.train(small(tmp_path, epochs=4))
    folder = tmp_path / "run"
    assert [row["epoch"] for row in rows(folder)] == ["1"]
    assert checkpoint.load(folder / "checkpoint.pt")["state"]["step"] == 3
    assert checkpoint.load(folder / "last.pt")["epoch"] == 1
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["epochs"]) == ("failed", 1)
    assert (folder / "curves.png").exists()
    monkeypatch.undo()
    summary = recipe.resume(folder, {})  # the cause being gone, it goes on
    assert (summary["status"], summary["epochs"]) == ("completed", 4)


PLACES = {
    "before the first step": (report, "draw_plan", 1),
    "in the first step": (Totals, "add", 1),
    "in the middle of an epoch": (Totals, "add", 5),
    "in the last step of an epoch": (Totals, "add", 3),
    "in an evaluation": (engine, "predict", 1),
    "while a checkpoint is written": (checkpoint, "write_whole", 1),
    "while the weights are written": (checkpoint, "write_whole", 2),
    "while the history is written": (outputs, "write_rows", 1),
    "while the last checkpoint is written": (checkpoint, "write_whole", 4),
    "while the summary is written": (outputs, "write_json", 2),
    "while the results are drawn": (report, "draw_results", 1),
}


@pytest.mark.parametrize(("owner", "name", "call"), PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_anywhere_loses_nothing(finished, tmp_path, monkeypatch, capsys, owner, name, call, signum):
    at_call(monkeypatch, owner, name, call, signum)
    with pytest.raises(signals.Stopped) as stop:
        recipe.train(small(tmp_path))
    monkeypatch.undo()
    assert stop.value.signum == signum
    folder = tmp_path / "run"
    saved = checkpoint.load(folder / "checkpoint.pt")["state"]
    said = capsys.readouterr().out
    assert f"saved after step {saved['step']} of 6; python scripts/train.py --resume {folder} goes on" in said
    epochs = len(saved["history"])
    assert (folder / "history.csv").exists() == (epochs > 0)
    if epochs:
        assert len(rows(folder)) == epochs
        assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
        assert {path.name for path in folder.iterdir()} >= PICTURES
        assert checkpoint.load(folder / "last.pt")["epoch"] == epochs
    assert not list(folder.glob(".*"))
    summary = recipe.resume(folder, {})
    assert summary["status"] == "completed"
    assert outcome(folder) == outcome(finished[1])
    assert {path.name for path in folder.iterdir()} == FILES


def test_a_second_ctrl_c_saves_nothing_more(tmp_path, monkeypatch):
    at_call(monkeypatch, Totals, "add", 2, signal.SIGINT)
    at_call(monkeypatch, notes.Notes, "save", 1, signal.SIGINT)
    with pytest.raises(signals.Stopped) as stop:
        recipe.train(small(tmp_path))
    assert stop.value.urgent
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.json", "samples.png", "lr_schedule.png"}


@pytest.mark.parametrize("call", [1, 3, 5])
def test_a_moving_average_goes_on_too(tmp_path, monkeypatch, call):
    whole = recipe.train(small(tmp_path, name="whole", ema_decay=0.8))
    at_call(monkeypatch, Totals, "add", call)
    with pytest.raises(signals.Stopped):
        recipe.train(small(tmp_path, ema_decay=0.8))
    monkeypatch.undo()
    recipe.resume(tmp_path / "run", {})
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    # What is saved and evaluated is the average, not the weights.
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")["state"]
    last = checkpoint.load(tmp_path / "run" / "last.pt")["model"]
    average = {name.removeprefix("module."): value for name, value in state["average"].items() if name != "n_averaged"}
    assert all(torch.equal(last[name], value) for name, value in average.items())
    assert not torch.equal(last["resnet.linear.weight"], state["model"]["resnet.linear.weight"])
    network = small_network((0, 0, 0), (1, 1, 1), classes=10)
    network.load_state_dict(last)
    _, test = data.load_synthetic()
    images, labels = torch.from_numpy(test.images[:12]), torch.from_numpy(test.labels[:12])
    accuracy = (engine.predict(network, images, runtime.start("cpu", "fp32")).argmax(1) == labels).double().mean()
    assert whole["final_test_accuracy"] == accuracy.item()


def test_weights_that_are_no_numbers_are_never_saved(finished, tmp_path, monkeypatch):
    """A gradient overflows while its loss is sound: no loss tells before the next one, and a checkpoint comes first."""
    step, calls = torch.optim.Adam.step, []

    def overflow(optimizer, *arguments):
        calls.append(1)
        if len(calls) == 5:
            optimizer.param_groups[0]["params"][0].grad.fill_(math.inf)
        return step(optimizer, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", overflow)
        with pytest.raises(TrainingError, match="epoch 2, step 2: the weights are no longer finite numbers; --max-lr"):
            recipe.train(small(tmp_path, checkpoint_every_minutes=1e-9))
    folder = tmp_path / "run"
    assert checkpoint.load(folder / "checkpoint.pt")["state"]["step"] == 4
    recipe.resume(folder, {"checkpoint_every_minutes": 5.0})
    assert outcome(folder) == outcome(finished[1])


def test_the_time_of_checkpoints_is_not_time_of_steps(tmp_path, monkeypatch):
    clock, save = [0.0], checkpoint.save

    def tick():
        clock[0] += 0.001
        return clock[0]

    def slow(*arguments, **keywords):
        clock[0] += 100
        save(*arguments, **keywords)

    monkeypatch.setattr("time.perf_counter", tick)
    monkeypatch.setattr(checkpoint, "save", slow)
    recipe.train(small(tmp_path, checkpoint_every_minutes=1e-9))  # one a step
    assert [0 < float(row["train_seconds"]) < 1 for row in rows(tmp_path / "run")] == [True, True]


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(finished, tmp_path, monkeypatch):
    write_whole, calls = checkpoint.write_whole, []

    def full(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 4:  # the checkpoint of the second epoch
            raise OSError(errno.ENOSPC, "No space left on device", str(arguments[0]))
        return write_whole(*arguments, **keywords)

    monkeypatch.setattr(checkpoint, "write_whole", full)
    with pytest.raises(MachineError) as caught:
        recipe.train(small(tmp_path))
    monkeypatch.undo()
    folder = tmp_path / "run"
    assert str(caught.value) == (
        f"{folder / 'checkpoint.pt'}: No space left on device; free some space. "
        f"python scripts/train.py --resume {folder} goes on from the last checkpoint"
    )
    assert checkpoint.load(folder / "checkpoint.pt")["state"]["step"] == 3
    recipe.resume(folder, {})
    assert outcome(folder) == outcome(finished[1])


def test_too_little_memory_on_the_accelerator_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")

    monkeypatch.setattr(Totals, "add", full)
    with pytest.raises(MachineError, match=r"^the accelerator's memory is full; lower --batch-size.* begins again$"):
        recipe.train(small(tmp_path))


def test_a_bug_is_not_taken_for_a_fault_of_the_machine(tmp_path, monkeypatch):
    def bug(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Totals, "add", bug)
    with pytest.raises(RuntimeError, match="mat1"):
        recipe.train(small(tmp_path))
