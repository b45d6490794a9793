"""Trainings from beginning to end: stops and failures anywhere, and resuming after them."""

import errno
import json
import shlex
import signal

import pytest
import torch

from s10_resnet.arguments import parse_args
from s10_resnet.config import FindLRConfig, TrainConfig
from s10_resnet.data import dataset
from s10_resnet.errors import DownloadError, EnvironmentFailure, InputError, TrainingError
from s10_resnet.evaluation.inference import evaluate
from s10_resnet.training import run_logger, trainer
from s10_resnet.training.optim import planned_lrs
from s10_resnet.training.run_logger import TrainingLogger
from s10_resnet.training.setup import create_setup
from s10_resnet.training.trainer import Trainer, find_lr, resume, train
from s10_resnet.utils import serialization
from s10_resnet.utils.launch import command
from s10_resnet.utils.signals import ShutdownRequested
from tests.outcome import outcome
from tests.runs import at_call, failing, fault, names_in, nan, nan_gradient, rows, same_tensors, send, small, stop

pytestmark = pytest.mark.usefixtures("small_parts")

# Every setting that the result of a training depends on, but for those that need the real network.
ALL_SETTINGS = {
    "anneal_strategy": "cos",
    "betas": (0.8, 0.95),
    "flip": "alternating",
    "cutout_size": 4,
    "crop_padding": 2,
    "val_size": 50,
    "seed": 7,
}
AT_ANY_LOSS = range(1, 9)
IN_TRAINING, IN_EVALUATION = (1, 2, 3, 5, 6, 7), (4, 8)


def step_of(folder):
    return serialization.load(folder / "checkpoint.pt")["state"]["step"]


# Trainer.fit


def test_fit_trains_evaluates_and_logs_every_epoch(tmp_path):
    class Recorder(TrainingLogger):
        steps, epochs = [], []

        def on_step(self, state):
            self.steps.append((state.step, state.metrics.images))

        def on_epoch_end(self, state):
            self.epochs.append((state.step, state.history[-1]))

    setup, log = create_setup(small(tmp_path, epochs=3)), Recorder()
    run = Trainer(setup, 0.01)
    run.fit(log)
    assert log.steps == [(step, images) for step, images in zip(range(1, 10), [25, 50, 60] * 3, strict=True)]
    assert [step for step, _ in log.epochs] == [3, 6, 9]
    history = [metrics for _, metrics in log.epochs]
    assert history == run.state.history
    assert [metrics.epoch for metrics in history] == [1, 2, 3]
    lrs = planned_lrs(**setup.schedule(0.01))
    assert [metrics.lr for metrics in history] == [lrs[2], lrs[5], lrs[8]]
    loss, accuracy, logits = evaluate(run.state.model, *setup.eval_tensors(), setup.build_criterion(), setup.runtime)
    assert (history[-1].eval_loss, history[-1].eval_accuracy) == (loss, accuracy)
    assert torch.equal(run.state.eval_logits, logits)
    for metrics in history:
        assert metrics.images_per_second == pytest.approx(60 / metrics.train_seconds)
    assert not list(tmp_path.iterdir())  # files are the logger's


def test_a_network_learns(tmp_path):
    """All parts together: 100 images are told apart after 30 epochs."""
    no_augmentation = {"crop_padding": 0, "cutout_size": 0, "flip": "none"}
    config = small(tmp_path, max_train_samples=100, epochs=30, label_smoothing=0.0, **no_augmentation)
    run = Trainer(create_setup(config), 0.01)
    run.fit(TrainingLogger())
    first, last = run.state.history[0], run.state.history[-1]
    assert first.train_accuracy < 0.3
    assert last.train_accuracy > 0.9


@pytest.mark.parametrize("workers", [0, 2])
def test_the_result_depends_on_the_seed_alone(finished, tmp_path, workers):
    train(small(tmp_path, workers=workers))
    assert outcome(tmp_path / "run") == outcome(finished[1])
    train(small(tmp_path, seed=1, name="other"))
    ours, other = (serialization.load(tmp_path / name / "last.pt")["model"] for name in ("run", "other"))
    assert not same_tensors(ours, other)


# Resuming


@pytest.mark.parametrize("call", AT_ANY_LOSS)
def test_a_run_stopped_anywhere_resumes_to_the_same_bits(finished, tmp_path, call):
    folder = stop(small(tmp_path), call)
    assert step_of(folder) == [1, 2, 3, 3, 4, 5, 6, 6][call - 1]  # within an evaluation no step is lost
    with fault(10 - call, failing(AssertionError("steps were repeated"))):
        assert resume(folder)["status"] == "completed"
    assert outcome(folder) == outcome(finished[1])
    assert names_in(folder) == names_in(finished[1])


@pytest.mark.parametrize(("before", "after", "call"), [(2, 2, 2), (2, 0, 5), (0, 2, 4)])
def test_a_run_resumes_with_any_number_of_workers(finished, tmp_path, before, after, call):
    folder = stop(small(tmp_path, workers=before), call)
    resume(folder, {"workers": after})
    assert outcome(folder) == outcome(finished[1])


@pytest.mark.parametrize("augment_on", ["cpu", "device"])
def test_a_run_with_all_settings_resumes_to_the_same_bits_after_every_loss(tmp_path, augment_on):
    changes = {**ALL_SETTINGS, "augment_on": augment_on}
    train(small(tmp_path, name="whole", **changes))
    folder = stop(small(tmp_path, **changes), 1)
    for _ in range(20):
        try:
            with fault(2, send(signal.SIGTERM)):  # one step or evaluation further each time
                resume(folder)
        except ShutdownRequested:
            continue
        break
    assert outcome(folder) == outcome(tmp_path / "whole")


def test_a_finished_run_trains_nothing_more(finished, capsys):
    _, folder, summary = finished
    before = outcome(folder)
    with fault(1, failing(AssertionError("a loss was computed"))):
        assert resume(folder) == summary
    out = capsys.readouterr().out
    assert "all epochs have been trained: " in out
    assert "train loss" not in out
    assert outcome(folder) == before


def test_a_run_killed_before_its_first_checkpoint_starts_again(finished, tmp_path):
    with fault(1, failing(SystemExit())), pytest.raises(SystemExit):
        train(small(tmp_path))
    folder = tmp_path / "run"
    assert names_in(folder) == {"config.json"}
    (folder / ".config.json.tmp").touch()  # what a kill may leave
    resume(folder)
    assert outcome(folder) == outcome(finished[1])
    assert names_in(folder) == names_in(finished[1])


KILLED = {  # a file that is not written any more
    "weights of the first epoch": (serialization, "atomic_write", 1),
    "best weights": (run_logger, "link_or_copy", 1),
    "checkpoint of the first epoch": (serialization, "atomic_write", 2),
    "history of the first epoch": (run_logger, "write_csv", 1),
    "weights of the second epoch": (serialization, "atomic_write", 3),
    "checkpoint of the second epoch": (serialization, "atomic_write", 4),
    "history of the second epoch": (run_logger, "write_csv", 2),
    "summary": (run_logger, "write_json", 1),
}


@pytest.mark.parametrize(("owner", "name", "call"), KILLED.values(), ids=KILLED)
def test_a_run_killed_between_two_files_resumes_to_the_same_bits(finished, tmp_path, owner, name, call):
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, owner, name, call, failing(SystemExit()))
        with pytest.raises(SystemExit):
            train(small(tmp_path))
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(finished[1])
    assert names_in(tmp_path / "run") == names_in(finished[1])


def test_torchrun_continues_the_run_that_it_restarts(finished, tmp_path, monkeypatch):
    stop(small(tmp_path), 5)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(InputError, match=r"^--name: is required under torchrun"):
        train(small(tmp_path, name=""))
    train(small(tmp_path))
    assert outcome(tmp_path / "run") == outcome(finished[1])
    assert train(small(tmp_path, name="unborn", epochs=1))["status"] == "completed"


# Signals


@pytest.mark.parametrize("call", [1, 4, 7])
def test_ctrl_c_saves_everything_and_says_how_to_continue(tmp_path, capsys, call):
    with fault(call, send(signal.SIGINT)), pytest.raises(ShutdownRequested) as stopped:
        train(small(tmp_path))
    assert (stopped.value.signum, stopped.value.urgent) == (signal.SIGINT, False)
    folder, step = tmp_path / "run", step_of(tmp_path / "run")
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"saved after step {step} of 6",
        f"to continue: {command('train', '--resume', folder)}",
    ]
    epochs = 1 if call == 7 else 0
    assert (folder / "history.csv").exists() == bool(epochs)
    if epochs:
        assert len(rows(folder)) == epochs
        assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
        assert serialization.load(folder / "last.pt")["epoch"] == epochs
    assert not list(folder.glob(".*"))


WRITTEN = {  # a file that is written when a signal comes, and the steps that are saved then
    "weights": (serialization, "atomic_write", 1, 3),
    "best weights": (run_logger, "link_or_copy", 1, 3),
    "first checkpoint": (serialization, "atomic_write", 2, 3),
    "history": (run_logger, "write_csv", 1, 3),
    "last weights": (serialization, "atomic_write", 3, 6),
    "last checkpoint": (serialization, "atomic_write", 4, 6),
    "summary": (run_logger, "write_json", 1, 6),
}


@pytest.mark.parametrize(("owner", "name", "call", "step"), WRITTEN.values(), ids=WRITTEN)
def test_a_signal_while_a_file_is_written_loses_nothing(finished, tmp_path, owner, name, call, step):
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, owner, name, call, send(signal.SIGTERM))
        with pytest.raises(ShutdownRequested):
            train(small(tmp_path))
    folder = tmp_path / "run"
    assert step_of(folder) == step
    assert not list(folder.glob(".*"))
    resume(folder)
    assert outcome(folder) == outcome(finished[1])


def test_a_second_ctrl_c_ends_the_step_it_comes_in_and_saves_nothing(tmp_path):
    with fault(2, send(signal.SIGINT, signal.SIGINT)), pytest.raises(ShutdownRequested) as stopped:
        train(small(tmp_path))
    assert stopped.value.urgent
    assert names_in(tmp_path / "run") == {"config.json"}


def test_a_second_ctrl_c_while_saving_leaves_the_last_checkpoint(finished, tmp_path):
    with fault(6, send(signal.SIGINT)), pytest.MonkeyPatch.context() as patch:
        at_call(patch, serialization, "atomic_write", 3, send(signal.SIGINT))
        with pytest.raises(ShutdownRequested) as stopped:
            train(small(tmp_path))
    assert stopped.value.urgent
    folder = tmp_path / "run"
    assert step_of(folder) == 3
    resume(folder)
    assert outcome(folder) == outcome(finished[1])


def test_a_repeated_sigterm_is_like_one(tmp_path):
    with fault(2, send(signal.SIGTERM, signal.SIGTERM)), pytest.raises(ShutdownRequested):
        train(small(tmp_path))
    assert step_of(tmp_path / "run") == 2


# Losses and weights that are not finite


@pytest.mark.parametrize("call", IN_TRAINING)
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_epochs_before(finished, tmp_path, call):
    epoch, step = (1, call) if call < 4 else (2, call - 4)
    with fault(call, nan), pytest.raises(TrainingError) as raised:
        train(small(tmp_path, checkpoint_every_minutes=1e-9))
    folder = tmp_path / "run"
    kept = f"; {folder} contains the epochs before" if epoch > 1 else ""
    assert str(raised.value) == f"epoch {epoch}, step {step}: the loss is not finite; a lower --max-lr may help{kept}"
    good_steps = call - epoch
    assert (folder / "checkpoint.pt").exists() == bool(good_steps)
    assert not good_steps or step_of(folder) == good_steps
    assert (folder / "summary.json").exists() == (folder / "last.pt").exists() == (epoch == 2)
    if epoch == 2:
        assert [row["epoch"] for row in rows(folder)] == ["1"]
        assert serialization.load(folder / "last.pt")["epoch"] == 1
        summary = json.loads((folder / "summary.json").read_text())
        assert (summary["status"], summary["epochs"]) == ("failed", 1)
    resume(folder, {"checkpoint_every_minutes": 5.0})  # without the fault
    assert outcome(folder) == outcome(finished[1])


@pytest.mark.parametrize("call", IN_EVALUATION)
def test_an_evaluation_loss_that_is_not_finite_is_no_epoch(tmp_path, call):
    with fault(call, nan), pytest.raises(TrainingError, match=f"^epoch {call // 4}: the evaluation loss is not finite"):
        train(small(tmp_path))
    folder = tmp_path / "run"
    if call == 4:
        assert names_in(folder) == {"config.json"}
    else:
        assert len(rows(folder)) == serialization.load(folder / "best.pt")["epoch"] == 1


def test_weights_that_are_not_finite_are_never_saved(finished, tmp_path):
    """A gradient overflows in a step with a finite loss: the next loss would tell, but a checkpoint comes first."""
    with fault(6, nan_gradient), pytest.raises(TrainingError, match=r"^epoch 2, step 2: the weights are not finite"):
        train(small(tmp_path, checkpoint_every_minutes=1e-9))
    folder = tmp_path / "run"
    assert step_of(folder) == 4
    resume(folder, {"checkpoint_every_minutes": 5.0})
    assert outcome(folder) == outcome(finished[1])


# Failures of the machine, and bugs


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(finished, tmp_path):
    folder = tmp_path / "run"
    full = OSError(errno.ENOSPC, "No space left on device", str(folder / "checkpoint.pt"))
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, serialization, "atomic_write", 4, failing(full))  # the checkpoint of the second epoch
        with pytest.raises(EnvironmentFailure) as raised:
            train(small(tmp_path))
    assert str(raised.value) == (
        f"{folder / 'checkpoint.pt'}: No space left on device; free some space. "
        f"To continue from the last checkpoint: {command('train', '--resume', folder)}"
    )
    assert step_of(folder) == 3
    resume(folder)
    assert outcome(folder) == outcome(finished[1])


def test_a_full_accelerator_is_one_line(tmp_path):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
    with fault(2, failing(error)), pytest.raises(EnvironmentFailure) as raised:
        train(small(tmp_path))
    assert str(raised.value).startswith("the accelerator's memory is full; lower --batch-size")
    assert str(raised.value).endswith(
        f"Nothing has been saved yet. To start again: {command('train', '--resume', tmp_path / 'run')}"
    )


def test_a_bug_is_not_taken_for_a_failure_of_the_machine(tmp_path):
    bug = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with fault(2, failing(bug)), pytest.raises(RuntimeError, match="mat1"):
        train(small(tmp_path))


# Before the first step


def test_a_run_is_never_overwritten(finished):
    config, folder, _ = finished
    before = outcome(folder)
    with pytest.raises(InputError, match=r"^--name run: must be a new name"):
        train(config)
    assert outcome(folder) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 61}, "--batch-size 61: must be at most the number of training images, 60"),
        ({"val_size": 200}, "--val-size 200: must be below the number of training images, 200"),
        ({"precision": "fp16"}, "--precision fp16: must be "),
    ],
)
@pytest.mark.parametrize("command", ["train", "find_lr"])
def test_settings_that_do_not_fit_leave_no_folder(tmp_path, command, changes, message):
    config = small(tmp_path / "outputs", **changes)
    if command == "find_lr":
        config = FindLRConfig.from_json(config.to_json())
    with pytest.raises(InputError, match=f"^{message}"):
        getattr(trainer, command)(config)
    assert not (tmp_path / "outputs").exists()


def test_auto_says_that_it_uses_the_synthetic_data_set_and_resumes_with_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dataset, "load_cifar10", failing(DownloadError("no network")))
    folder = stop(small(tmp_path, dataset="auto"), 2)
    out, err = capsys.readouterr()
    assert err.startswith("warning: CIFAR-10 was not found")
    assert "SYNTHETIC" in err
    assert err.count("\n") == 1
    assert out.startswith(f"writing to {folder}\nsynthetic: 60 training and 12 test images; cpu, fp32, 0 workers\n")
    assert json.loads((folder / "config.json").read_text())["dataset"] == "auto"
    monkeypatch.setattr(dataset, "load_cifar10", failing(AssertionError("the data changed")))
    assert resume(folder)["dataset"] == "synthetic"
    assert json.loads((folder / "config.json").read_text())["dataset"] == "auto"
    monkeypatch.setattr(dataset, "load_cifar10", failing(DownloadError("no network")))
    train(small(tmp_path, dataset="auto", epochs=1, name=""))
    assert len(list(tmp_path.glob("train-synthetic-*"))) == 1
    with pytest.raises(InputError, match="no network"):
        train(small(tmp_path, dataset="cifar10"))


# The learning rate of the range test

# With these the loss of the small network has a minimum.
RANGE_TEST = {
    "batch_size": 200,
    "max_train_samples": 0,
    "crop_padding": 0,
    "cutout_size": 0,
    "flip": "none",
    "label_smoothing": 0.0,
    "lr_finder_steps": 30,
    "lr_finder_start_lr": 1e-5,
    "lr_finder_end_lr": 0.3,
}


def test_max_lr_auto_trains_with_what_find_lr_recommends(tmp_path, capsys):
    changes = {**RANGE_TEST, "seed": 3}
    found = find_lr(FindLRConfig.from_json(small(tmp_path, name="search", **changes).to_json()))
    advice = capsys.readouterr().out.splitlines()[-1].removeprefix(f"next: {command('train')} ")
    advised = TrainConfig(**parse_args(TrainConfig, shlex.split(advice)))
    same = {name: value for name, value in changes.items() if not name.startswith("lr_finder_")}  # which have no effect
    assert advised == small(tmp_path, name="", max_lr=found.max_lr, **same | {"epochs": 24})
    summary = train(small(tmp_path, max_lr="auto", epochs=2, **changes))
    assert summary["max_lr"] == found.max_lr
    curves = {"lr_finder.csv", "lr_finder.json", "lr_finder.png"}
    assert names_in(tmp_path / "search") == {"config.json", *curves}
    assert names_in(tmp_path / "run") >= curves
    csvs = [(tmp_path / name / "lr_finder.csv").read_bytes() for name in ("run", "search")]
    assert csvs[0] == csvs[1]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["max_lr"] == "auto"
    fixed = train(small(tmp_path, max_lr=found.max_lr, epochs=2, name="fixed", **changes))
    assert fixed["final_train_loss"] == summary["final_train_loss"]


def test_a_learning_rate_that_was_found_is_kept(tmp_path):
    folder = stop(small(tmp_path, max_lr="auto", **RANGE_TEST), 31)  # after the 30 of the range test
    found = json.loads((folder / "lr_finder.json").read_text())["recommended_max_lr"]
    (folder / "lr_finder.json").unlink()
    assert resume(folder)["max_lr"] == found
    assert not (folder / "lr_finder.json").exists()


def test_without_a_minimum_both_commands_fail_and_keep_the_curve(tmp_path):
    changes = {"lr_finder_end_lr": 2e-6, "lr_finder_steps": 20}
    with pytest.raises(TrainingError, match=r"^--max-lr auto: the loss never falls by 5 %"):
        train(small(tmp_path, max_lr="auto", **changes))
    with pytest.raises(TrainingError, match=r"^the loss never falls by 5 %"):
        find_lr(FindLRConfig.from_json(small(tmp_path, name="search", **changes).to_json()))
    with pytest.raises(InputError, match=r": must be the folder of a training run, and is that of a range test$"):
        resume(tmp_path / "search")
    for name in ("run", "search"):
        assert names_in(tmp_path / name) == {"config.json", "lr_finder.csv", "lr_finder.json", "lr_finder.png"}
        assert json.loads((tmp_path / name / "lr_finder.json").read_text())["recommended_max_lr"] is None


def test_a_range_test_runs_in_a_single_process(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match=r"^torchrun: a range test runs in a single process"):
        find_lr(FindLRConfig.from_json(small(tmp_path).to_json()))
    assert not list(tmp_path.iterdir())
