"""Stops, failures and resumptions: on a network that trains in no time, with pictures that draw themselves."""

import errno
import json
import math
import os
import signal
from collections import OrderedDict

import pytest
import torch
from torch import nn

from s10_resnet import (
    checkpoint,
    data,
    engine,
    files,
    lr_finder,
    model,
    notes,
    outputs,
    recipe,
    report,
    runtime,
    signals,
    synthetic,
)
from s10_resnet.data import Split
from s10_resnet.errors import InputError, MachineError, TrainingError
from s10_resnet.state import Totals
from tests.outcome import outcome
from tests.test_recipe import BOWL, FILES, PICTURES, rows, small


def small_network(mean, std, *, classes, logit_scale):
    layers = (nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(512, classes, bias=False))
    names = ("conv", "norm", "flat", "linear")
    return nn.Sequential(
        OrderedDict(
            normalize=model.Normalize(mean, std), resnet=nn.Sequential(OrderedDict(zip(names, layers, strict=True)))
        )
    )


@pytest.fixture(scope="module", autouse=True)
def small_parts():
    parts = tuple(Split(*synthetic.draw(200, seed), synthetic.CLASSES) for seed in (1, 2))

    def draw(*names):
        return lambda folder, *_: [files.write_whole(folder / name, b"") for name in names]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load_synthetic", lambda: parts)
        patch.setattr(model, "build_network", small_network)
        patch.setattr(report, "draw_plan", draw("samples.png", "lr_schedule.png"))
        patch.setattr(report, "draw_results", draw("curves.png", "confusion.png", "mistakes.png"))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing interrupted: its config, folder and summary."""
    config = small(tmp_path_factory.mktemp("outputs"))
    return config, config.output_dir / "run", recipe.train(config)


def at_call(monkeypatch, owner, name, call, signum=signal.SIGTERM):
    """Sends this process a signal right before the given call of a function."""
    function, calls = getattr(owner, name), []

    def signalled(*arguments, **keywords):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signum)
        return function(*arguments, **keywords)

    monkeypatch.setattr(owner, name, signalled)


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
    network = small_network((0, 0, 0), (1, 1, 1), classes=10, logit_scale=0.125)
    network.load_state_dict(last)
    _, test = data.load_synthetic()
    images, labels = torch.from_numpy(test.images[:12]), torch.from_numpy(test.labels[:12])
    accuracy = (engine.predict(network, images, runtime.start("cpu", "fp32")).argmax(1) == labels).double().mean()
    assert whole["final_test_accuracy"] == accuracy.item()


@pytest.mark.parametrize("workers", [1, 3])
def test_a_run_goes_on_with_any_number_of_workers(finished, tmp_path, monkeypatch, workers):
    at_call(monkeypatch, Totals, "add", 2)
    with pytest.raises(signals.Stopped):
        recipe.train(small(tmp_path, workers=2))
    monkeypatch.undo()
    recipe.resume(tmp_path / "run", {"workers": workers})
    assert outcome(tmp_path / "run") == outcome(finished[1])


@pytest.fixture
def half(tmp_path, monkeypatch):
    """A run that was stopped in its second epoch."""
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, Totals, "add", 5)
        with pytest.raises(signals.Stopped):
            recipe.train(small(tmp_path))
    return tmp_path / "run"


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_other_settings_are_refused_one_and_all(half):
    before = content_of(half)
    with pytest.raises(InputError) as caught:
        recipe.resume(half, {"epochs": 30, "max_lr": 0.1, "batch_size": 25, "workers": 0})
    assert str(caught.value) == (
        f"--resume {half}: a run cannot go on with other settings: --epochs 30 (the run was begun with 2); "
        "--max-lr 0.1 (the run was begun with 0.005)"
    )
    assert content_of(half) == before


def test_a_changed_config_file_is_refused(half):
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps({**config, "epochs": 3, "seed": 1}))
    with pytest.raises(InputError, match=r"--epochs 3 in config.json \(the run was begun with 2\); --seed 1 in"):
        recipe.resume(half, {})


def test_a_changed_environment_is_warned_of_and_kept_apart(half, monkeypatch, capsys):
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    assert recipe.resume(half, {})["status"] == "completed"
    err = capsys.readouterr().err
    assert f"threads {threads} -> {threads + 1}" in err
    assert "not to the same bits" in err


def test_the_same_environment_is_not_warned_of(half, capsys):
    recipe.resume(half, {})
    assert capsys.readouterr().err == ""


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


@pytest.mark.parametrize("content", ["", "epoch,train_loss\n1,0.5\n", "not a table", None])
def test_a_history_that_was_changed_is_told_and_written_anew(half, finished, capsys, content):
    if content is None:
        path = half / "history.csv"
        content = path.read_text().replace("1,", "1,9", 1)
    (half / "history.csv").write_text(content)
    recipe.resume(half, {})
    assert f"{half / 'history.csv'} is not what this run wrote" in capsys.readouterr().err
    assert outcome(half) == outcome(finished[1])


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_offered_and_taken(half, finished):
    newest, previous = half / "checkpoint.pt", half / "checkpoint.previous.pt"
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    before = content_of(half)
    with pytest.raises(InputError) as caught:
        recipe.resume(half, {})
    message = str(caught.value)
    assert message.startswith(f"--resume {newest}: is damaged")
    assert message.endswith(f"; the one before it is whole: --resume {previous} goes on after step 3")
    assert content_of(half) == before
    recipe.resume(previous, {})
    assert outcome(half) == outcome(finished[1])
    assert checkpoint.load(previous)["state"]["step"] == 3  # the damaged one was not kept


def test_with_both_checkpoints_damaged_nothing_is_offered(half):
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (half / name).write_bytes(b"torn")
    with pytest.raises(InputError, match=r"checkpoint.pt: is damaged, or no checkpoint of this package.*match\)$"):
        recipe.resume(half, {})


def test_a_checkpoint_whose_name_went_missing_is_found_under_the_other(half, finished):
    (half / "checkpoint.pt").unlink()
    recipe.resume(half, {})
    assert outcome(half) == outcome(finished[1])


def test_a_run_killed_before_its_first_checkpoint_begins_again(finished, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    outputs.write_json(folder / "config.json", finished[0].to_json())
    (folder / ".samples.png.tmp").touch()  # what a kill may leave
    recipe.resume(folder, {})
    assert outcome(folder) == outcome(finished[1])
    assert {path.name for path in folder.iterdir()} == FILES


def test_a_finished_run_is_only_drawn_again(finished, tmp_path, monkeypatch):
    _, folder, summary = finished
    before = outcome(folder)
    (folder / "curves.png").unlink()
    monkeypatch.setattr(Totals, "add", lambda *_: pytest.fail("a step was taken"))
    assert recipe.resume(folder, {}) == summary
    assert outcome(folder) == before
    assert {path.name for path in folder.iterdir()} == FILES


def test_weights_alone_are_no_place_to_go_on_from(half):
    with pytest.raises(
        InputError, match=r"last.pt: must be the folder of a run, or its checkpoint.pt or checkpoint.pre"
    ):
        recipe.resume(half / "last.pt", {})
    (half / "last.pt").replace(half / "checkpoint.pt")
    with pytest.raises(
        InputError, match=r"^--resume .*checkpoint.pt: is no checkpoint of a training$|^--resume .*run: is"
    ):
        recipe.resume(half, {})


@pytest.mark.parametrize("damage", ["not json", '{"epochs": 2}', "[]"])
def test_a_folder_with_other_settings_files_is_no_run(half, damage):
    (half / "config.json").write_text(damage)
    with pytest.raises(InputError):
        recipe.resume(half, {})


def forge(folder, change):
    saved = checkpoint.load(folder / "checkpoint.pt")
    change(saved)
    checkpoint.save(folder / "checkpoint.pt", saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: saved["state"]["model"].popitem(),
        lambda saved: saved["state"].update(step=4),
        lambda saved: saved["state"].pop("totals"),
        lambda saved: saved["state"].update(history=[{"epoch": 1}]),
        lambda saved: saved["state"]["model"].update({"resnet.linear.weight": torch.zeros(10, 3)}),
        lambda saved: saved.update(state=[1, 2]),
        lambda saved: saved.update(config={}),
        lambda saved: saved.update(max_lr="much"),
        lambda saved: saved.update(environment="here"),
        lambda saved: saved.update(dataset="mnist"),
        lambda saved: saved.pop("max_lr"),
    ],
)
def test_a_whole_checkpoint_of_something_else_is_one_line(half, change):
    forge(half, change)
    with pytest.raises(InputError) as caught:
        recipe.resume(half, {})
    assert "\n" not in str(caught.value)


def test_a_run_on_the_stand_in_does_not_go_on_with_cifar10(tmp_path, monkeypatch):
    def nothing_there(root):
        raise data.DownloadError("no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load_cifar10", nothing_there)
        at_call(patch, Totals, "add", 2)
        with pytest.raises(signals.Stopped):
            recipe.train(small(tmp_path, dataset="auto"))
    monkeypatch.setattr(data, "load_cifar10", lambda root: pytest.fail("the data changed"))
    assert recipe.resume(tmp_path / "synthetic-run", {})["dataset"] == "synthetic"


def test_a_rate_that_was_found_is_kept(tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lr_finder, "range_test", lambda *_, **__: BOWL)
        at_call(patch, Totals, "add", 2)
        with pytest.raises(signals.Stopped):
            recipe.train(small(tmp_path, max_lr="auto"))
    monkeypatch.setattr(lr_finder, "range_test", lambda *_, **__: pytest.fail("it is known already"))
    assert recipe.resume(tmp_path / "run", {})["max_lr"] == lr_finder.suggest(BOWL).max_lr


def test_two_processes_cannot_work_on_one_run(half):
    before = content_of(half)
    with files.locked(half), pytest.raises(InputError, match="must be a run that no other process is working on"):
        recipe.resume(half, {})
    assert content_of(half) == before
    assert recipe.resume(half, {})["status"] == "completed"


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


def test_torchrun_goes_on_with_the_run_it_restarts(finished, tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, Totals, "add", 5)
        with pytest.raises(signals.Stopped):
            recipe.train(small(tmp_path))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(InputError, match="--name: must be given under torchrun"):
        recipe.train(small(tmp_path, name=""))
    recipe.train(small(tmp_path))
    assert outcome(tmp_path / "run") == outcome(finished[1])
    (tmp_path / "run").rename(tmp_path / "synthetic-run")  # as --dataset auto names it
    recipe.train(small(tmp_path))
    assert not (tmp_path / "run").exists()
    assert recipe.train(small(tmp_path, name="unborn", epochs=1))["status"] == "completed"
