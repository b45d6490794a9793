"""What a training writes: names of files, keys and numbers."""

import csv
import json
import sys
from dataclasses import fields

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from s10_resnet.config import TrainConfig
from s10_resnet.data import synthetic
from s10_resnet.data.transforms import MEAN, STD
from s10_resnet.errors import EnvironmentFailure, InputError
from s10_resnet.evaluation.inference import evaluate
from s10_resnet.reporting import figures
from s10_resnet.training import run_logger, trainer
from s10_resnet.training.run_logger import RunLogger, TensorBoardWriter, best_epoch, require_tensorboard
from s10_resnet.training.setup import create_setup
from s10_resnet.training.state import EpochMetrics
from s10_resnet.training.trainer import fit_run, resume, train
from s10_resnet.utils import serialization
from tests.outcome import outcome
from tests.runs import (
    DRAW,
    FILES,
    PLOTS,
    RECORDS,
    WEIGHTS,
    at_call,
    failing,
    fault,
    names_in,
    rows,
    small,
    small_network,
    stop,
)

pytestmark = pytest.mark.usefixtures("small_parts")

HISTORY = [
    EpochMetrics(epoch, 2.0 / epoch, 0.1 * epoch, 1.5 / epoch, 0.2 * epoch, 0.01 * epoch, 3.0, 1.0, 100.0 + epoch)
    for epoch in (1, 2, 3)
]
SUMMARY_KEYS = [
    *("status", "dataset", "eval_split", "epochs", "parameters", "seed", "max_lr"),
    *("final_train_accuracy", "final_eval_accuracy", "best_train_accuracy", "best_eval_accuracy", "best_epoch"),
    *("final_train_loss", "final_eval_loss", "train_images", "eval_images", "train_seconds", "eval_seconds"),
    *("images_per_second", "workers", "device", "precision", "world_size", "augment_on"),
    *("versions", "git_commit", "hardware"),
]
WEIGHTS_KEYS = ["model", "epoch", "eval_accuracy", "eval_split", "dataset", "classes", "config"]


@pytest.fixture
def real_plots(monkeypatch):
    for name, draw in DRAW.items():
        monkeypatch.setattr(RunLogger, name, draw)


# Files


def test_a_run_folder_holds_everything_and_nothing_else(tmp_path, real_plots, capsys):
    train(small(tmp_path))
    assert names_in(tmp_path / "run") == FILES
    assert capsys.readouterr().err == ""
    for name in PLOTS:
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")


def test_one_of_many_trainings_is_quiet(tmp_path, real_plots, capsys):
    config = small(tmp_path)
    (tmp_path / "run").mkdir()
    fit_run(create_setup(config), tmp_path / "run", quiet=True)
    assert names_in(tmp_path / "run") == (WEIGHTS | RECORDS) - {"config.json"}
    assert capsys.readouterr() == ("", "")


def test_the_config_is_written_as_it_was_given(finished):
    config, folder, _ = finished
    content = json.loads((folder / "config.json").read_text())
    assert content == config.to_json()
    assert list(content) == list(TrainConfig.model_fields)


def test_the_summary_is_that_of_the_history(finished):
    _, folder, summary = finished
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert list(summary) == SUMMARY_KEYS
    history = rows(folder)
    assert list(history[0]) == [field.name for field in fields(EpochMetrics)]
    assert [row["epoch"] for row in history] == ["1", "2"]
    last, accuracies = history[-1], [float(row["eval_accuracy"]) for row in history]
    assert (summary["status"], summary["epochs"], summary["dataset"]) == ("completed", 2, "synthetic")
    assert (summary["eval_split"], summary["train_images"], summary["eval_images"]) == ("test", 60, 12)
    assert (summary["seed"], summary["max_lr"], summary["parameters"]) == (0, 0.005, 12160)
    for name in ("train_accuracy", "eval_accuracy", "train_loss", "eval_loss"):
        assert summary[f"final_{name}"] == float(last[name])
    assert summary["best_eval_accuracy"] == max(accuracies)
    assert summary["best_epoch"] == accuracies.index(max(accuracies)) + 1
    assert summary["best_train_accuracy"] == max(float(row["train_accuracy"]) for row in history)
    seconds = sum(float(row["train_seconds"]) for row in history)
    assert summary["train_seconds"] == pytest.approx(seconds)
    assert summary["eval_seconds"] == pytest.approx(sum(float(row["eval_seconds"]) for row in history))
    assert summary["images_per_second"] == pytest.approx(120 / seconds)


def test_held_out_images_are_called_val(tmp_path):
    summary = train(small(tmp_path, val_size=50, epochs=1))
    assert (summary["eval_split"], summary["train_images"], summary["eval_images"]) == ("val", 60, 12)
    assert serialization.load(tmp_path / "run" / "last.pt")["eval_split"] == "val"


# Weights


def test_saved_weights_give_the_accuracy_of_the_history(tmp_path, cpu):
    config = small(tmp_path, epochs=6, max_lr=0.02)
    summary = train(config)
    folder, history = tmp_path / "run", rows(tmp_path / "run")
    setup = create_setup(config)
    for name, epoch in (("last.pt", 6), ("best.pt", summary["best_epoch"])):
        content = serialization.load(folder / name)
        assert list(content) == WEIGHTS_KEYS
        assert (content["epoch"], content["eval_split"], content["dataset"]) == (epoch, "test", "synthetic")
        assert content["config"] == config.to_json()
        assert content["classes"] == list(synthetic.CLASSES)
        network = small_network((0.0,) * 3, (1.0,) * 3)  # mean and std come with the weights
        network.load_state_dict(content["model"])
        assert torch.allclose(network.normalize.mean.flatten(), 255 * torch.tensor(MEAN))
        assert torch.allclose(network.normalize.std.flatten(), 255 * torch.tensor(STD))
        loss, accuracy, _ = evaluate(network, *setup.eval_tensors(), setup.build_criterion(), cpu)
        row = history[epoch - 1]
        assert accuracy == content["eval_accuracy"] == float(row["eval_accuracy"])
        assert loss == float(row["eval_loss"])
    assert summary["best_epoch"] < 6  # else the two files are the same


def test_the_best_epoch_is_the_first_of_equals():
    history = [EpochMetrics(epoch, 1, 1, 1, accuracy, 1, 1, 1, 1) for epoch, accuracy in enumerate((0.1, 0.5, 0.5), 1)]
    assert best_epoch(history).epoch == 2


def test_the_weights_of_a_best_epoch_are_stored_once(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    accuracies = iter((0.2, 0.5, 0.3))
    monkeypatch.setattr(trainer, "evaluate", lambda *_: (1.0, next(accuracies), torch.zeros(12, 10)))
    train(small(tmp_path, epochs=3))
    assert serialization.load(folder / "best.pt")["epoch"] == 2  # not changed by the last.pt of epoch 3
    assert serialization.load(folder / "last.pt")["epoch"] == 3
    monkeypatch.setattr(trainer, "evaluate", lambda *_: (1.0, 0.5, torch.zeros(12, 10)))
    train(small(tmp_path, epochs=1, name="single"))
    assert (tmp_path / "single" / "best.pt").samefile(tmp_path / "single" / "last.pt")


@pytest.mark.parametrize("accuracies", [(0.2, 0.5, 0.3), (0.2, 0.3, 0.5)])
def test_weights_that_are_saved_late_are_those_of_their_epoch(tmp_path, monkeypatch, accuracies):
    for name, seconds in (("often", 0.0), ("once", 1000.0)):
        monkeypatch.setattr(run_logger, "EPOCH_END_SECONDS", seconds)
        values = iter(accuracies)
        monkeypatch.setattr(trainer, "evaluate", lambda *_, values=values: (1.0, next(values), torch.zeros(12, 10)))
        train(small(tmp_path, epochs=3, name=name))
    for name in ("last.pt", "best.pt"):
        often, once = (serialization.load(tmp_path / folder / name) for folder in ("often", "once"))
        assert often["epoch"] == once["epoch"]
        assert all(torch.equal(tensor, once["model"][key]) for key, tensor in often["model"].items())


@pytest.mark.parametrize(("file", "epochs"), [(2, 0), (4, 1)])
def test_a_checkpoint_is_not_written_before_the_weights_of_its_epochs(tmp_path, file, epochs):
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, serialization, "atomic_write", file, failing(OSError(28, "No space left on device")))
        with pytest.raises(EnvironmentFailure):
            train(small(tmp_path))
    assert (folder / "checkpoint.pt").exists() == bool(epochs)
    assert serialization.load(folder / "last.pt")["epoch"] == epochs + 1
    assert not (folder / "summary.json").exists()
    assert resume(folder)["status"] == "completed"


# Plots


def test_a_plot_that_cannot_be_drawn_is_a_warning(tmp_path, real_plots, monkeypatch, capsys):
    monkeypatch.setattr(figures, "plot_setup", failing(FileNotFoundError(2, "No such file", "DejaVuSans.ttf")))
    monkeypatch.setattr(figures, "plot_results", failing(KeyError("axes")))
    assert train(small(tmp_path))["status"] == "completed"
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        "warning: a plot could not be drawn (FileNotFoundError: [Errno 2] No such file: 'DejaVuSans.ttf')",
        "warning: a plot could not be drawn (KeyError: 'axes')",
    ]
    assert "see " not in out
    assert names_in(tmp_path / "run") == WEIGHTS | RECORDS | {"MODEL_CARD.md"}


def test_a_disk_that_is_full_of_plots_is_no_warning(tmp_path, real_plots, monkeypatch):
    monkeypatch.setattr(figures, "plot_results", failing(OSError(28, "No space left on device", "curves.png")))
    with pytest.raises(EnvironmentFailure, match=r"^curves\.png: No space left on device"):
        train(small(tmp_path))
    monkeypatch.undo()
    assert resume(tmp_path / "run")["status"] == "completed"


# What a killed process has not written


def test_files_of_the_epochs_before_are_written_again(half):
    (half / "history.csv").unlink()
    with fault(1, failing(MemoryError())), pytest.raises(EnvironmentFailure):
        resume(half)
    assert [row["epoch"] for row in rows(half)] == ["1"]


def test_checkpoints_within_an_epoch_are_saved_in_time(tmp_path):
    with fault(3, failing(MemoryError())), pytest.raises(EnvironmentFailure):
        train(small(tmp_path, checkpoint_every_minutes=1e-9))
    assert serialization.load(tmp_path / "run" / "checkpoint.pt")["state"]["step"] == 2
    with fault(3, failing(MemoryError())), pytest.raises(EnvironmentFailure):
        train(small(tmp_path, name="rare"))
    assert not (tmp_path / "rare" / "checkpoint.pt").exists()


def test_a_history_that_is_open_elsewhere_ends_no_run(tmp_path, monkeypatch, capsys):
    error = PermissionError(13, "Permission denied", "history.csv")
    at_call(monkeypatch, run_logger, "write_csv", 1, failing(error))
    assert train(small(tmp_path))["status"] == "completed"
    assert [row["epoch"] for row in rows(tmp_path / "run")] == ["1", "2"]
    assert capsys.readouterr().err.startswith("warning: history.csv could not be written (Permission denied)")


# Lines


def test_short_epochs_do_not_each_save_a_checkpoint(tmp_path, finished, monkeypatch):
    monkeypatch.setattr(run_logger, "EPOCH_END_SECONDS", 1000.0)
    train(small(tmp_path))
    assert outcome(tmp_path / "run") == outcome(finished[1])
    assert not (tmp_path / "run" / "checkpoint.previous.pt").exists()  # the only one is that of the end
    stopped = stop(small(tmp_path, name="stopped"), 5)
    assert serialization.load(stopped / "checkpoint.pt")["state"]["step"] == 4


def test_what_is_printed(tmp_path, real_plots, capsys):
    summary = train(small(tmp_path))
    out, err = capsys.readouterr()
    folder, *lines = out.splitlines()
    assert err == ""
    assert folder == f"writing to {tmp_path / 'run'}"
    assert lines[:2] == [
        "synthetic: 60 training and 12 test images; cpu, fp32, 0 workers",
        "12,160 parameters, max LR 0.005",
    ]
    assert [line.split()[0] for line in lines[2:5]] == ["epoch", "1/2", "2/2"]
    assert lines[5] == f"completed after epoch 2: synthetic, test accuracy {summary['final_eval_accuracy']:.2%}"
    assert lines[6].startswith(f"best test accuracy {summary['best_eval_accuracy']:.2%} in epoch ")
    assert lines[6].endswith(f" s of training steps, {summary['images_per_second']:,.0f} images/s")
    assert lines[7] == f"see {tmp_path / 'run' / 'curves.png'}, or report.html for everything on one page"
    assert len(lines) == 8
    assert max(map(len, lines[:7])) <= 80


# TensorBoard


def scalars(folder):
    """What TensorBoard would show."""
    shown = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def test_each_epoch_is_logged_once_and_at_once(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    for epochs in (1, 2, 2, 3):
        writer.log(HISTORY[:epochs])
        assert [step for step, _ in scalars(tmp_path)["lr"]] == [1, 2, 3][:epochs]
    writer.close()
    expected = {
        "loss/train": "train_loss",
        "loss/eval": "eval_loss",
        "accuracy/train": "train_accuracy",
        "accuracy/eval": "eval_accuracy",
        "lr": "lr",
        "images_per_second": "images_per_second",
    }
    shown = scalars(tmp_path)
    assert shown.keys() == expected.keys()
    for tag, name in expected.items():
        assert shown[tag] == [(metrics.epoch, pytest.approx(getattr(metrics, name))) for metrics in HISTORY]


def test_a_resumed_run_replaces_what_it_logged_before(tmp_path):
    for epochs in (2, 3):
        writer = TensorBoardWriter(tmp_path)
        writer.log(HISTORY[:epochs])
        writer.close()
    assert [step for step, _ in scalars(tmp_path)["accuracy/eval"]] == [1, 2, 3]


def test_nothing_is_logged_before_there_is_an_epoch(tmp_path):
    TensorBoardWriter(tmp_path / "tensorboard").close()
    assert not (tmp_path / "tensorboard").exists()


def test_a_training_logs_to_tensorboard_if_it_is_asked_to(tmp_path, finished):
    train(small(tmp_path, tensorboard=True))
    with (tmp_path / "run" / "history.csv").open(newline="") as file:
        accuracies = [float(row["eval_accuracy"]) for row in csv.DictReader(file)]
    shown = scalars(tmp_path / "run" / "tensorboard")["accuracy/eval"]
    assert shown == [(1, pytest.approx(accuracies[0])), (2, pytest.approx(accuracies[1]))]
    assert not (finished[1] / "tensorboard").exists()


def test_without_tensorboard_nothing_is_begun(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match=r"^--tensorboard: needs tensorboard, which is not installed: pip install"):
        train(small(tmp_path, tensorboard=True))
    assert not any(tmp_path.iterdir())
    with pytest.raises(InputError):
        require_tensorboard(tmp_path)


def test_tensorboard_takes_no_path_that_is_not_unicode(tmp_path):
    with pytest.raises(InputError, match=r"^--tensorboard: needs a path in UTF-8; "):
        train(small(tmp_path / "\udcff", tensorboard=True))
    assert not any(tmp_path.iterdir())
