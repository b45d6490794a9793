"""Which checkpoint a run resumes from, with which settings, and what is refused."""

import json
import math
from pathlib import Path

import pytest
import torch

from s10_resnet.config import TrainConfig
from s10_resnet.errors import InputError
from s10_resnet.training.checkpoint import RESUME_OVERRIDES, override_settings
from s10_resnet.training.trainer import resume, train
from s10_resnet.utils import serialization
from s10_resnet.utils.io import exclusive_lock
from tests.outcome import outcome
from tests.runs import content_of, small

pytestmark = pytest.mark.usefixtures("small_parts")


def forge(folder, change):
    saved = serialization.load(folder / "checkpoint.pt")
    change(saved)
    serialization.save(folder / "checkpoint.pt", saved)


def refused(path, given=None):
    """The message of a resumption that is refused, and that has changed nothing."""
    folder = path if path.is_dir() else path.parent
    before = content_of(folder)
    with pytest.raises(InputError) as raised:
        resume(path, given)
    assert "\n" not in str(raised.value)
    assert content_of(folder) == before
    return str(raised.value)


def test_a_checkpoint_holds_what_a_run_needs(half):
    saved = serialization.load(half / "checkpoint.pt")
    assert saved.keys() == {"state", "max_lr", "config", "dataset", "environment"}
    assert saved["state"].keys() == {
        *("model", "optimizer", "scheduler", "scaler", "step", "metrics", "history", "eval_logits")
    }
    assert (saved["state"]["step"], saved["state"]["metrics"]["steps"], saved["max_lr"]) == (4, 1, 0.005)
    assert TrainConfig.from_json(saved["config"]) == small(half.parent)
    assert serialization.load(half / "checkpoint.previous.pt")["state"]["step"] == 3


# Settings


def test_all_settings_that_differ_are_named(half):
    assert refused(half, {"epochs": 30, "max_lr": 0.1, "batch_size": 25, "workers": 0}) == (
        f"--resume {half}: a run cannot be resumed with other settings: --epochs 30 (the run has 2); "
        f"--max-lr 0.1 (the run has 0.005); --config {half / 'config.json'} starts a new run"
    )


def test_no_setting_that_the_result_depends_on_can_change(half):
    other = {
        "augment_on": "device",
        "anneal_strategy": "cos",
        "flip": "none",
        "precision": "bf16",
        "dataset": "cifar10",
        "betas": (0.5, 0.5),
        "output_dir": half,
        "name": "other",
        "dirac_init": True,
        "whitening_init": True,
        "deterministic": True,
        "epochs": 9,
        "max_lr": 1.0,
        "pct_start": 0.9,
        "div_factor": 2.0,
        "final_div_factor": 2.0,
        "batch_size": 9,
        "weight_decay": 0.9,
        "label_smoothing": 0.9,
        "logit_scale": 9.0,
        "crop_padding": 9,
        "cutout_size": 9,
        "val_size": 9,
        "max_train_samples": 99,
        "seed": 9,
        "lr_finder_start_lr": 1e-3,
        "lr_finder_end_lr": 0.9,
        "lr_finder_steps": 99,
    }
    assert other.keys() == TrainConfig.model_fields.keys() - {*RESUME_OVERRIDES}
    for name, value in other.items():
        assert f" --{name.replace('_', '-')} {value} (the run has " in refused(half, {name: value})


def test_settings_that_the_result_does_not_depend_on_can_change(half, finished, tmp_path):
    assert {*RESUME_OVERRIDES} == {"workers", "data_dir", "device", "checkpoint_every_minutes", "tensorboard"}
    given = {"workers": 1, "data_dir": tmp_path, "device": "cpu", "checkpoint_every_minutes": 1e-9, "tensorboard": True}
    resume(half, given)
    assert outcome(half) == outcome(finished[1])
    assert (half / "tensorboard").exists()
    assert serialization.load(half / "checkpoint.previous.pt")["state"]["metrics"]["steps"] == 3  # one per step


def test_a_run_of_another_machine_is_resumed_on_the_device_that_is_here(half, finished):
    config = half / "config.json"
    config.write_text(config.read_text().replace('"device": "cpu"', '"device": "cuda:99"'))
    assert "cuda:99" in config.read_text()
    resume(half)
    assert outcome(half) == outcome(finished[1])


def test_the_data_folder_of_another_machine_is_not_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("S10_DATA_DIR", raising=False)
    recorded = small(tmp_path, data_dir=tmp_path / "recorded")
    assert override_settings(recorded, {}).data_dir == Path("data")
    recorded.data_dir.mkdir()
    assert override_settings(recorded, {}) == recorded
    monkeypatch.setenv("S10_DATA_DIR", str(tmp_path / "moved"))
    assert override_settings(recorded, {}).data_dir == tmp_path / "moved"
    assert override_settings(recorded, {"data_dir": tmp_path}).data_dir == tmp_path


def test_a_changed_config_file_is_refused(half):
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps({**config, "epochs": 3, "seed": 1}))
    message = refused(half)
    assert "--epochs 3 in config.json (the checkpoint has 2); --seed 1 in config.json (the checkpoint has 0)" in message


@pytest.mark.parametrize("content", ["not json", "[]", '{"epochs": "two"}', '{"speed": 3}'])
def test_a_config_file_that_holds_no_settings_is_one_line(half, content):
    (half / "config.json").write_text(content)
    assert "config.json" in refused(half)


# The environment


def test_a_changed_environment_is_warned_of(half, finished, capsys):
    forge(half, lambda saved: saved["environment"]["hardware"].update(threads="99\nwarning: \x1b[2J"))
    resume(half)
    err = capsys.readouterr().err
    begin = r"warning: the environment has changed since this run was begun: threads 99\nwarning: \x1b[2J -> "
    assert err.startswith(begin)
    assert err.count("\n") == 1


def test_the_same_environment_is_not_warned_of(half, capsys):
    resume(half)
    assert capsys.readouterr().err == ""


# Which checkpoint


def test_a_damaged_checkpoint_is_named_and_the_previous_one_offered_and_used(half, finished):
    newest, previous = half / "checkpoint.pt", half / "checkpoint.previous.pt"
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    message = refused(half)
    assert message.startswith(f"--resume {newest}: is damaged")
    assert message.endswith(f"; the previous one is intact: --resume {previous} continues after step 3")
    assert refused(newest) == message
    resume(previous)
    assert outcome(half) == outcome(finished[1])
    serialization.load(previous)  # the damaged one was not kept


def test_with_both_checkpoints_damaged_none_is_offered(half):
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (half / name).write_bytes(b"torn")
    assert refused(half).endswith("(its SHA-256 does not match)")


@pytest.mark.parametrize("named", [False, True])
def test_a_missing_newest_checkpoint_leaves_the_previous_one(half, finished, named):
    (half / "checkpoint.pt").unlink()
    resume(half / "checkpoint.previous.pt" if named else half)
    assert outcome(half) == outcome(finished[1])


def test_only_a_run_can_be_resumed(half, tmp_path):
    assert refused(half / "last.pt").endswith(
        "last.pt: must be a run folder, or its checkpoint.pt or checkpoint.previous.pt"
    )
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(InputError, match=f"^--resume {path}: must be a run folder, or a checkpoint in one$"):
            resume(path)
    (half / "last.pt").replace(half / "checkpoint.pt")
    assert refused(half).endswith("checkpoint.pt: is not a checkpoint of this version of the package")


def test_two_processes_cannot_work_on_one_run(half, finished):
    with exclusive_lock(half), pytest.raises(InputError, match="must be a run that no other process is working on"):
        resume(half)
    resume(half)
    assert outcome(half) == outcome(finished[1])


# Checkpoints that are intact, but not the run's


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: saved["state"]["model"].popitem(),
        lambda saved: saved["state"]["model"].update({"resnet.linear.weight": torch.zeros(10, 3)}),
        lambda saved: saved["state"]["optimizer"].update(param_groups=[]),
        lambda saved: saved["state"].pop("metrics"),
        lambda saved: saved["state"].update(metrics=[]),
        lambda saved: saved["state"].update(history=[{"epoch": 1}]),
        lambda saved: saved["state"]["history"][0].update(eval_accuracy="high"),
        lambda saved: saved["state"]["history"][0].update(train_loss=math.nan),
        lambda saved: saved["state"]["history"][0].update(epoch=10**400),
        lambda saved: saved["state"].update(history=5),
        lambda saved: saved["state"].update(step="4"),
        lambda saved: saved["state"].update(eval_logits=None),
        lambda saved: saved["state"].update(eval_logits=torch.zeros(12, 10, dtype=torch.int64)),
        lambda saved: saved["state"]["metrics"].update(seconds="long"),
        lambda saved: saved["state"]["metrics"].update(sums=torch.zeros(3)),
        lambda saved: saved["state"]["scheduler"].update(step=5),
        lambda saved: saved["state"]["scheduler"].update(_schedule_phases=[]),
        lambda saved: saved["state"]["scheduler"].update(total_steps="6"),
        lambda saved: saved["state"]["optimizer"].update(state=[]),
        lambda saved: saved["state"]["optimizer"]["state"].popitem(),
        lambda saved: saved["state"]["optimizer"]["state"][0].update(exp_avg=torch.zeros(2)),
        lambda saved: saved["state"]["optimizer"]["param_groups"][0].update(lr="much"),
        lambda saved: saved["state"]["optimizer"]["param_groups"][0].pop("betas"),
        lambda saved: saved.update(state=[1, 2]),
        lambda saved: saved.update(config={}),
        lambda saved: saved["config"].update(epochs="two"),
        lambda saved: saved.update(max_lr="much"),
        lambda saved: saved.update(environment="here"),
        lambda saved: saved.update(environment={}),
        lambda saved: saved["environment"].update(augment_on="moon"),
        lambda saved: saved.update(dataset="mnist"),
        lambda saved: saved.pop("max_lr"),
        lambda saved: saved.update(more=1),
    ],
)
def test_a_checkpoint_of_something_else_is_one_line(half, change):
    forge(half, change)
    assert refused(half).startswith(("--resume", "--dataset 'mnist': ", "--augment-on 'moon': ", "--epochs 'two': "))


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(step=5),
        lambda state: state.update(step=-4),
        lambda state: state["metrics"].update(steps=2),
        lambda state: state["history"].clear(),
        lambda state: state["history"].append(state["history"][0]),
        lambda state: (state["history"].clear(), state["metrics"].update(steps=4)),  # an epoch of four steps
        lambda state: (state.update(step=2), state["metrics"].update(steps=-1)),
        lambda state: (state.update(step=10), state.update(history=state["history"] * 3)),  # more epochs than the run
    ],
)
def test_a_checkpoint_that_contradicts_itself_is_one_line(half, change):
    forge(half, lambda saved: change(saved["state"]))
    assert refused(half) == "--resume: the checkpoint contradicts itself about the number of steps"


@pytest.mark.parametrize("lr", [math.nan, math.inf, -1.0, 0.0])
def test_a_learning_rate_that_cannot_be_is_one_line(half, lr):
    forge(half, lambda saved: saved.update(max_lr=lr))
    assert refused(half).endswith("is not a checkpoint of this version of the package")


def test_a_checkpoint_of_the_previous_version_is_called_so(half):
    forge(half, lambda saved: saved["state"].update(totals=saved["state"].pop("metrics")))
    assert refused(half).endswith("is not a checkpoint of this version of the package")


def test_a_run_of_the_real_network_is_not_one_of_the_small_one(half):
    """The settings are the same; the shapes are not."""
    forge(half, lambda saved: saved["state"].update(model={"conv.weight": torch.zeros(64, 3, 3, 3)}))
    assert refused(half) == "--resume: the checkpoint does not fit the run (ValueError)"


def test_a_finished_run_has_both_checkpoints(tmp_path):
    train(small(tmp_path))
    steps = [
        serialization.load(tmp_path / "run" / f"{n}.pt")["state"]["step"] for n in ("checkpoint.previous", "checkpoint")
    ]
    assert steps == [3, 6]
