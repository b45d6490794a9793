import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from s10_resnet.config import TrainConfig
from s10_resnet.errors import InputError
from s10_resnet.training import state
from s10_resnet.training.run_files import read_config, read_history, read_summary

REPOSITORY = Path(__file__).resolve().parents[3]
RUNS = sorted(path.parent for path in (REPOSITORY / "results").glob("**/config.json"))
OLD_RUN = REPOSITORY / "results" / "cifar10-24-epochs"
READERS = {"config.json": read_config, "history.csv": read_history, "summary.json": read_summary}

SUMMARY = {
    "status": "completed",
    "dataset": "synthetic",
    "eval_split": "val",
    "epochs": 2,
    "parameters": 6573120,
    "seed": 3,
    "max_lr": 0.005,
    "final_train_accuracy": 0.5,
    "final_eval_accuracy": 0.625,
    "best_train_accuracy": 0.5,
    "best_eval_accuracy": 0.75,
    "best_epoch": 1,
    "final_train_loss": 1.5,
    "final_eval_loss": 1.25,
    "train_images": 900,
    "eval_images": 100,
    "train_seconds": 10.0,
    "eval_seconds": 1.0,
    "images_per_second": 180.0,
    "workers": 0,
    "device": "cpu",
    "precision": "fp32",
    "world_size": 2,
    "versions": {"torch": "2.10"},
    "git_commit": None,
    "hardware": {"accelerator": None, "threads": 2},
}
HISTORY = (
    "epoch,train_loss,train_accuracy,eval_loss,eval_accuracy,lr,train_seconds,eval_seconds,images_per_second\r\n"
    "1,2.0,0.25,1.75,0.75,0.001,6.0,0.5,150.0\r\n"
    "2,1.5,0.5,1.25,0.625,1e-08,4.0,0.5,225.0\r\n"
)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TrainConfig(seed=3, val_size=100).to_json()))
    (tmp_path / "history.csv").write_text(HISTORY, newline="")
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    return tmp_path


def error(read, folder):
    with pytest.raises(InputError) as caught:
        read(folder)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < len(str(folder)) + 200
    return text.removeprefix(f"{folder}/")


def test_files_of_this_version(run):
    assert read_config(run) == TrainConfig(seed=3, val_size=100).to_json()
    assert read_summary(run) == SUMMARY
    first, second = read_history(run)
    assert list(first.values()) == [1, 2.0, 0.25, 1.75, 0.75, 0.001, 6.0, 0.5, 150.0]
    assert type(first["epoch"]) is int
    assert second["lr"] == 1e-08


def test_the_columns_are_the_fields_of_an_epoch(run):
    assert list(read_history(run)[0]) == [field.name for field in fields(state.EpochMetrics)]


@pytest.mark.parametrize("folder", RUNS, ids=lambda path: path.name)
def test_every_run_below_results(folder):
    config, history, summary = (read(folder) for read in READERS.values())
    assert summary["epochs"] == len(history) == config["epochs"]
    assert summary["eval_split"] == ("val" if config["val_size"] else "test")
    assert summary["final_eval_accuracy"] == history[-1]["eval_accuracy"]
    assert summary["best_eval_accuracy"] == max(epoch["eval_accuracy"] for epoch in history)
    assert summary["final_eval_loss"] == history[-1]["eval_loss"]
    assert summary["train_seconds"] == pytest.approx(sum(epoch["train_seconds"] for epoch in history))
    assert summary["train_images"] == 50_000 - config["val_size"]
    assert summary["world_size"] == 1


def test_a_run_of_the_previous_version(tmp_path):
    """Values as they are in its files, under the keys of this version."""
    shutil.copytree(OLD_RUN, tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps({**content, "processes": 4}))
    config, (first, *_), summary = (read(tmp_path) for read in READERS.values())
    assert (config["betas"], config["anneal_strategy"], config["flip"]) == ([0.9, 0.99], "linear", "random")
    assert (config["cutout_size"], config["max_train_samples"]) == (8, 0)
    assert (first["eval_loss"], first["eval_accuracy"]) == (1.28224990234375, 0.6419)
    assert first["eval_seconds"] == 11.372076680998362
    assert (summary["eval_split"], summary["eval_images"], summary["world_size"]) == ("test", 10_000, 4)
    assert (summary["final_eval_accuracy"], summary["final_eval_loss"]) == (0.9433, 0.642879052734375)
    assert not [key for key in (*first, *summary, *config) if "test" in key or key == "processes"]


def test_a_history_without_epochs(run):
    (run / "history.csv").write_text("epoch,train_loss\r\n")
    assert read_history(run) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.625", "1.5", "row 2, eval_accuracy: input should be less than or equal to 1"),
        ("0.625", "nan", "row 2, eval_accuracy: input should be a finite number"),
        ("1.75", "inf", "row 1, eval_loss: input should be a finite number"),
        ("6.0", "0.0", "row 1, train_seconds: input should be greater than 0"),
        ("150.0", "1e300", "row 1, images_per_second: input should be less than or equal to 1000000000000000"),
        ("\n2,", "\n2.5,", "row 2, epoch: input should be a valid integer, got a number with a fractional part"),
        ("\n2,", "\n3,", "the epochs must be numbered 1, 2, 3 and so on"),
        ("train_loss", "loss", "row 1, train_loss: field required"),
        ("1.75", "one", "is not a CSV file of numbers under a header line"),
    ],
)
def test_damaged_histories(run, old, new, message):
    assert old in HISTORY
    (run / "history.csv").write_text(HISTORY.replace(old, new), newline="")
    assert error(read_history, run) == f"history.csv: {message}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "\33[2J"}, "status: input should be 'completed', 'interrupted' or 'failed'"),
        ({"epochs": True}, "epochs: input should be a valid integer"),
        ({"final_eval_accuracy": "0.5"}, "final_eval_accuracy: input should be a valid number"),
        ({"final_eval_loss": 10**400}, "final_eval_loss: "),
        ({"eval_split": "train"}, "eval_split: input should be 'test' or 'val'"),
        ({"hardware": {"\33[2J" * 99: []}}, r"hardware.\x1b[2J\x1b[2J"),
    ],
)
def test_damaged_summaries(run, changes, message):
    (run / "summary.json").write_text(json.dumps({**SUMMARY, **changes}))
    assert error(read_summary, run).startswith(f"summary.json: {message}")


@pytest.mark.parametrize("key", sorted(SUMMARY.keys() - {"world_size"}))
def test_a_summary_without_a_key(run, key):
    (run / "summary.json").write_text(json.dumps({name: SUMMARY[name] for name in SUMMARY if name != key}))
    assert error(read_summary, run) == f"summary.json: {key}: field required"


def test_unknown_keys_of_a_summary_are_left_out(run):
    (run / "summary.json").write_text(json.dumps({**SUMMARY, "of a later version": [1]}))
    assert read_summary(run) == SUMMARY


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "the settings must be a JSON object"),
        ('{"\\udc80": 1}', "the names of settings must be valid Unicode"),
        ('{"epochs": "24"}', "--epochs '24': must be an integer from 1 to 10000"),
        ('{"max_lr": 1e999}', "--max-lr inf: must be a number above 0 and at most 1000, or auto"),
        ('{"mix": "cutmix"}', "--mix 'cutmix': this setting was removed"),
        ('{"epoch": 24}', "setting epoch: is unknown"),
        ('{"data_dir": "\\udc80", "epochs": 0}', "--epochs 0: must be an integer from 1 to 10000"),
    ],
)
def test_damaged_settings(run, content, message):
    (run / "config.json").write_text(content)
    assert error(read_config, run) == f"config.json: {message}"


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, b"NaN", b'"' + b"9" * 5000, b""])
def test_files_that_are_something_else(run, name, content):
    (run / name).write_bytes(content + b"\n1\n" * (name == "history.csv"))  # a head alone has no epochs
    assert error(READERS[name], run).startswith(f"{name}: ")


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file(run, name):
    (run / name).unlink()
    assert error(READERS[name], run) == f"{name}: cannot be read (No such file or directory)"
    (run / name).mkdir()
    assert error(READERS[name], run) == f"{name}: cannot be read (Is a directory)"
