import json

import pytest
import torch

from s10_resnet.data import dataset as data
from s10_resnet.errors import InputError
from s10_resnet.training import lr_finder, recipe
from s10_resnet.training.state import Totals
from s10_resnet.utils import io as files
from s10_resnet.utils import outputs, signals
from s10_resnet.utils import serialization as checkpoint
from tests.outcome import outcome
from tests.runs import BOWL, FILES, at_call, content_of, small

pytestmark = pytest.mark.usefixtures("small_parts")


@pytest.mark.parametrize("workers", [1, 3])
def test_a_run_goes_on_with_any_number_of_workers(finished, tmp_path, monkeypatch, workers):
    at_call(monkeypatch, Totals, "add", 2)
    with pytest.raises(signals.Stopped):
        recipe.train(small(tmp_path, workers=2))
    monkeypatch.undo()
    recipe.resume(tmp_path / "run", {"workers": workers})
    assert outcome(tmp_path / "run") == outcome(finished[1])


KNOBS = {
    "ema_decay": 0.8,
    "peak_beta1": 0.7,
    "bias_lr_factor": 3.0,
    "flip": "alternating",
    "cutout_probability": 0.5,
    "rotation": 10.0,
    "color_jitter": 0.2,
    "mix": "mixup",
    "mix_from": 0.5,
}


@pytest.mark.parametrize("call", [2, 4, 5])  # in the first epoch, and in the second, which is mixed
def test_a_run_with_every_knob_turned_goes_on_to_the_same_bits(tmp_path, call):
    recipe.train(small(tmp_path, name="whole", **KNOBS))
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, Totals, "add", call)
        with pytest.raises(signals.Stopped):
            recipe.train(small(tmp_path, **KNOBS))
    recipe.resume(tmp_path / "run", {"workers": 1})
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


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
