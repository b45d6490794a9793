import csv
import dataclasses
import json
import shlex

import numpy as np
import pytest
import torch

from s10_resnet import flags
from s10_resnet.config import Config
from s10_resnet.data import dataset as data
from s10_resnet.data import synthetic
from s10_resnet.data.dataset import Split
from s10_resnet.errors import InputError, TrainingError
from s10_resnet.models import resnet as model
from s10_resnet.training import loop as engine
from s10_resnet.training import lr_finder, recipe
from s10_resnet.utils import serialization as checkpoint
from tests.runs import BOWL, FILES, rows, small

ISSUE_KEYS = {
    "dataset",
    "epochs",
    "parameters",
    "seed",
    "final_train_accuracy",
    "final_test_accuracy",
    "best_test_accuracy",
    "best_epoch",
    "train_seconds",
    "images_per_second",
    "device",
    "precision",
    "versions",
    "git_commit",
}


@pytest.fixture(scope="module", autouse=True)
def few_images():
    """The stand-in, made smaller: drawing all of it takes a second each time."""
    parts = tuple(Split(*synthetic.draw(200, seed), synthetic.CLASSES) for seed in (1, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load_synthetic", lambda: parts)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished run: its config, folder and summary."""
    config = small(tmp_path_factory.mktemp("outputs"))
    return config, config.output_dir / "run", recipe.train(config)


def test_a_run_leaves_everything_and_nothing_else(finished):
    _, folder, _ = finished
    assert {path.name for path in folder.iterdir()} == FILES


def test_the_summary_says_what_the_history_says(finished):
    _, folder, summary = finished
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary.keys() >= ISSUE_KEYS
    history = rows(folder)
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert summary["status"] == "completed"
    assert summary["epochs"] == 2
    assert summary["parameters"] == 6_573_120
    assert summary["dataset"] == "synthetic"
    assert (summary["train_images"], summary["test_images"]) == (60, 12)
    accuracies = [float(row["test_accuracy"]) for row in history]
    assert summary["final_test_accuracy"] == accuracies[-1]
    assert summary["best_test_accuracy"] == max(accuracies)
    assert summary["best_epoch"] == accuracies.index(max(accuracies)) + 1
    assert summary["final_train_accuracy"] == float(history[-1]["train_accuracy"])
    seconds = sum(float(row["train_seconds"]) for row in history)
    assert summary["train_seconds"] == pytest.approx(seconds)
    assert summary["images_per_second"] == pytest.approx(120 / seconds)


def test_the_config_is_kept_as_it_was_asked_for(finished):
    config, folder, _ = finished
    assert json.loads((folder / "config.json").read_text()) == config.to_json()


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_saved_weights_give_the_accuracy_that_was_written_down(finished, cpu, name):
    config, folder, summary = finished
    state = checkpoint.load(folder / name)
    epoch = summary["epochs"] if name == "last.pt" else summary["best_epoch"]
    assert state["epoch"] == epoch
    assert state["config"] == config.to_json()
    assert state["classes"] == list(synthetic.CLASSES)
    network = model.build_network((0, 0, 0), (1, 1, 1))  # mean and std come with the weights
    network.load_state_dict(state["model"])
    _, test = data.load_synthetic()
    images, labels = torch.from_numpy(test.images[:12]), torch.from_numpy(test.labels[:12])
    accuracy = engine.evaluate(network, images, labels, torch.nn.CrossEntropyLoss(), cpu)[1]
    assert accuracy == state["test_accuracy"] == float(rows(folder)[epoch - 1]["test_accuracy"])


def test_a_seed_gives_the_same_run_with_any_number_of_workers(finished, tmp_path):
    _, folder, _ = finished
    recipe.train(small(tmp_path, workers=2))
    ours, theirs = (checkpoint.load(path / "last.pt")["model"] for path in (folder, tmp_path / "run"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    recipe.train(small(tmp_path, seed=1, name="other", epochs=1))
    other = checkpoint.load(tmp_path / "other" / "last.pt")["model"]
    assert not torch.equal(ours["resnet.linear.weight"], other["resnet.linear.weight"])


def test_a_run_is_never_overwritten(finished):
    config, folder, summary = finished
    with pytest.raises(InputError, match="--name run: must be a new name"):
        recipe.train(config)
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_held_out_figures_are_never_called_test_figures(tmp_path):
    summary = recipe.train(small(tmp_path, val_size=50, epochs=1))
    assert summary["final_val_accuracy"] == summary["best_val_accuracy"]
    assert (summary["train_images"], summary["val_images"]) == (60, 12)
    assert not [key for key in (*summary, *rows(tmp_path / "run")[0]) if "test" in key]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 61}, "--batch-size 61: must be at most the number of training images, 60"),
        ({"val_size": 200}, "--val-size 200: must be below the number of training images, 200"),
        ({"precision": "fp16"}, "--precision fp16: must be auto, fp32 or bf16 on cpu"),
    ],
)
@pytest.mark.parametrize("command", [recipe.train, recipe.search_lr])
def test_settings_that_do_not_fit_leave_no_folder(tmp_path, command, changes, message):
    with pytest.raises(InputError, match=message):
        command(small(tmp_path / "outputs", **changes))
    assert not (tmp_path / "outputs").exists()


def test_auto_says_loudly_that_it_took_the_stand_in(tmp_path, monkeypatch, capsys):
    def nothing_there(root):
        raise data.DownloadError("no network")

    monkeypatch.setattr(data, "load_cifar10", nothing_there)
    summary = recipe.train(small(tmp_path, dataset="auto", epochs=1))
    assert (tmp_path / "synthetic-run" / "summary.json").exists()
    assert summary["dataset"] == "synthetic"
    out, err = capsys.readouterr()
    assert "WARNING" in err
    assert "SYNTHETIC" in err
    assert "synthetic" in out.splitlines()[-2]
    recipe.train(small(tmp_path, dataset="auto", epochs=1, name=""))
    assert len(list(tmp_path.glob("train-synthetic-*"))) == 1
    with pytest.raises(InputError, match="no network"):
        recipe.train(small(tmp_path, dataset="cifar10"))


def test_search_lr_leaves_curve_suggestions_and_picture(tmp_path, capsys):
    # The real sweep: 60 images, 20 steps of which the network makes what it can.
    try:
        found = recipe.search_lr(small(tmp_path, finder_steps=20))
    except TrainingError as error:
        pytest.fail(f"no minimum in a sweep that has one: {error}")
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "lr_finder.json",
        "lr_finder.csv",
        "lr_finder.png",
    }
    content = json.loads((folder / "lr_finder.json").read_text())
    assert content["recommended_max_lr"] == found.max_lr
    assert content["suggestions"] == found.suggestions
    assert content["reason"] == found.reason
    assert content["config"] == small(tmp_path, finder_steps=20).to_json()
    with (folder / "lr_finder.csv").open(newline="") as file:
        assert 10 <= len(list(csv.DictReader(file))) <= 20
    out = capsys.readouterr().out
    for rule in found.suggestions:
        assert rule in out


def test_the_next_command_trains_with_what_was_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lr_finder, "range_test", lambda *_, **__: BOWL)
    config = small(tmp_path, seed=3)
    found = recipe.search_lr(config)
    program, script, *words = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("next: "))
    assert (program, script) == ("python", "scripts/train.py")
    assert Config(**flags.read(Config, words)) == dataclasses.replace(config, max_lr=found.max_lr, name="")


def test_max_lr_auto_trains_with_what_it_finds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lr_finder, "range_test", lambda *_, **__: BOWL)
    summary = recipe.train(small(tmp_path, max_lr="auto", epochs=1))
    assert summary["max_lr"] == lr_finder.suggest(BOWL).max_lr == pytest.approx(10**-2.5, rel=0.1)
    folder = tmp_path / "run"
    found = {"lr_finder.json", "lr_finder.csv", "lr_finder.png"}
    assert {path.name for path in folder.iterdir()} == FILES - {"checkpoint.previous.pt"} | found
    assert json.loads((folder / "config.json").read_text())["max_lr"] == "auto"
    out = capsys.readouterr().out
    assert "<- recommended" in out
    assert lr_finder.suggest(BOWL).reason in out


def test_a_range_test_without_a_minimum_stops_both_commands(tmp_path, monkeypatch):
    flat = lr_finder.LRCurve(np.logspace(-6, 0, 50), np.ones(50))
    monkeypatch.setattr(lr_finder, "range_test", lambda *_, **__: flat)
    with pytest.raises(TrainingError, match="never falls"):
        recipe.train(small(tmp_path, max_lr="auto"))
    with pytest.raises(TrainingError, match="never falls"):
        recipe.search_lr(small(tmp_path, name="search"))
    content = json.loads((tmp_path / "search" / "lr_finder.json").read_text())
    assert content["recommended_max_lr"] is None
    assert content["suggestions"] == {}
    assert (tmp_path / "search" / "lr_finder.png").exists()
