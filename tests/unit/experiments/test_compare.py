import csv
import json
import re
import statistics
from dataclasses import fields

import pytest
from matplotlib.figure import Figure

from s10_resnet.config import CompareConfig, FindLRConfig, TrainConfig
from s10_resnet.errors import InputError
from s10_resnet.experiments.compare import compare
from s10_resnet.reporting import plots
from s10_resnet.training import run_files
from tests.runs import failing
from tests.unit.training.test_run_files import SUMMARY

SAME_SEED = "has runs with the same seed, which are not independent of each other"


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """What was drawn: the arguments of each call. Drawing itself is `plots`' business."""
    calls = []

    def note(groups, **keywords):
        calls.append((groups, keywords))
        return Figure((1, 1))

    monkeypatch.setattr(plots, "plot_comparison", note)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setenv("COLUMNS", "80")
    return calls


def write(folder, accuracies=(0.5, 0.75), *, epochs=None, summary=(), **changes):
    """The text files of a run: of each epoch the evaluation accuracy, and other figures that follow from it."""
    folder.mkdir(parents=True)
    config = TrainConfig(**{"epochs": epochs or max(1, len(accuracies)), "dataset": "synthetic", **changes})
    (folder / "config.json").write_text(json.dumps(config.to_json()))
    names = [field.name for field in fields(run_files.EpochMetrics)]
    rows = [
        (epoch, 2.0, accuracy - 0.125, 4 * (1 - accuracy), accuracy, 1e-3, 10.0 * epoch, 1.0, 300.0 / epoch)
        for epoch, accuracy in enumerate(accuracies, 1)
    ]
    with (folder / "history.csv").open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    if summary is not None:
        split = "val" if config.val_size else "test"
        content = {**SUMMARY, "eval_split": split, "epochs": len(rows), **dict(summary)}
        (folder / "summary.json").write_text(json.dumps(content))
    return folder


def compared(tmp_path, *runs, name="result"):
    return compare(CompareConfig(runs=runs, output_dir=tmp_path / "out", name=name))


def refusal(tmp_path, *runs):
    with pytest.raises(InputError) as caught:
        compared(tmp_path, *runs)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def labels(content):
    return [(group["label"], group["n"]) for group in content["groups"]]


def test_a_plot_that_cannot_be_drawn_is_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plots, "plot_comparison", failing(FileNotFoundError(2, "No such file", "DejaVuSans.ttf")))
    runs = [write(tmp_path / f"run-{seed}", (0.5, 0.75), seed=seed) for seed in (1, 2)]
    assert labels(compared(tmp_path, *runs)) == [("run-1", 2)]
    assert capsys.readouterr().err.startswith("warning: a plot could not be drawn (FileNotFoundError: ")


def test_statistics_of_runs_that_differ_in_the_seed(tmp_path, drawn):
    accuracies = {1: (0.5, 0.75, 0.625), 2: (0.25, 0.5, 0.75), 5: (0.5, 0.5, 0.875)}
    runs = [write(tmp_path / f"run-{seed}", values, seed=seed) for seed, values in accuracies.items()]
    content = compared(tmp_path, *runs, write(tmp_path / "other", (0.25, 0.5, 0.375), max_lr=0.01))
    assert labels(content) == [("run-1", 3), ("other", 1)]
    figures = content["groups"][0]["statistics"]
    for name, values in {
        "final_eval_accuracy": [0.625, 0.75, 0.875],
        "best_eval_accuracy": [0.75, 0.75, 0.875],
        "best_epoch": [2, 3, 3],
        "final_eval_loss": [1.5, 1.0, 0.5],
        "final_train_accuracy": [0.5, 0.625, 0.75],
        "final_train_loss": [2, 2, 2],
        "train_seconds": [60, 60, 60],
        "images_per_second": [150, 150, 150],  # 9,000 images in 60 seconds; the mean of the rates is 183
    }.items():
        assert figures[name]["values"] == pytest.approx(values)
        assert figures[name]["mean"] == pytest.approx(statistics.fmean(values))
        assert figures[name]["std"] == pytest.approx(statistics.stdev(values))
        assert [run[name] for run in content["groups"][0]["runs"]] == figures[name]["values"]
    half = 4.30265 * 0.125 / 3**0.5  # t of 2 degrees of freedom
    assert figures["final_eval_accuracy"]["interval"] == pytest.approx([0.75 - half, 0.75 + half], abs=1e-4)
    single = {"n": 1, "mean": 0.5, "std": None, "interval": None, "values": [0.5]}
    assert content["groups"][1]["statistics"]["best_eval_accuracy"] == single
    assert [run["seed"] for run in content["groups"][0]["runs"]] == [1, 2, 5]
    assert content["differing_settings"] == {"max_lr": [0.005, 0.01]}
    assert content["warnings"] == []
    ((groups, keywords),) = drawn
    assert [(label, values["eval_accuracy"].tolist()) for label, values in groups] == [
        ("run-1", [list(values) for values in accuracies.values()]),
        ("other", [[0.25, 0.5, 0.375]]),
    ]
    assert keywords == {"split": "test", "title": "Loss and accuracy on synthetic test"}


def test_what_it_prints_and_writes(tmp_path, capsys):
    a = write(tmp_path / "a", (0.5, 0.75), dirac_init=False)
    b = write(tmp_path / "b", (0.25, 0.125), dirac_init=True, betas=(0.8, 0.9))
    content = compared(tmp_path, a, b)
    folder = tmp_path / "out" / "result"
    assert {path.name for path in folder.iterdir()} == {"curves.png", "comparison.json"}
    assert json.loads((folder / "comparison.json").read_text()) == content
    out, err = capsys.readouterr()
    assert err == ""
    assert out == (
        "evaluated on synthetic test\n\n"
        "run  n  epochs  accuracy, %  best, %    loss  seconds  images/s\n"
        "a    1       2        75.00    75.00  1.0000     30.0       200\n"
        "b    1       2        12.50    25.00  3.5000     30.0       200\n\n"
        "run   --betas  --dirac-init\n"
        "a    0.9 0.99         False\n"
        "b     0.8 0.9          True\n\n"
        f"see {folder / 'curves.png'} and comparison.json\n"
    )


def test_tables_that_are_too_wide_have_a_column_per_group(tmp_path, capsys):
    for name in "abc":
        for seed in range(2):
            folder = tmp_path / f"run-{name}-{seed}"
            write(folder, (0.5, 0.75 + seed / 8), seed=seed, max_lr=0.001 * ord(name))
    compared(tmp_path, *sorted(tmp_path.glob("run*")))
    lines = capsys.readouterr().out.splitlines()[2:]
    assert max(map(len, lines[:-1])) <= 80
    assert re.split("  +", lines[0]) == ["run", *(f"run-{x}-0" for x in "abc")]
    assert lines[3].split("  ")[0] == "accuracy, %"
    assert lines[3].count("81.25 ± 8.84") == 3


def test_labels_have_as_many_parents_as_they_need(tmp_path):
    runs = [write(tmp_path / path, max_lr=0.1 + i) for i, path in enumerate(["p/x", "q/x", "q/y"])]
    assert labels(compared(tmp_path, *runs)) == [("p/x", 1), ("q/x", 1), ("q/y", 1)]


# Groups


def test_settings_without_influence_make_no_group(tmp_path, capsys):
    others = {"data_dir": tmp_path, "workers": 3, "device": "cpu", "tensorboard": True}
    runs = [write(tmp_path / "x"), write(tmp_path / "y", seed=1, name="y", checkpoint_every_minutes=1.0, **others)]
    content = compared(tmp_path, *runs)
    assert labels(content) == [("x", 2)]
    assert content["differing_settings"] == {}
    assert "no setting differs but for the seed\n" in capsys.readouterr().out


def test_auto_is_the_data_set_that_it_came_to(tmp_path):
    runs = [write(tmp_path / "x", dataset="auto"), write(tmp_path / "y", seed=1)]
    assert labels(compared(tmp_path, *runs)) == [("x", 2)]


# Which runs


def test_a_folder_of_runs_stands_for_them(tmp_path, capsys):
    for seed in range(2):
        write(tmp_path / "sweep" / f"seed-{seed}", seed=seed)
        write(tmp_path / "sweep" / "variant" / f"seed-{seed}", seed=seed, max_lr=0.1)
    young = write(tmp_path / "sweep" / "seed-2", ())
    begun = write(tmp_path / "sweep" / "\33[2J", ())
    (begun / "history.csv").unlink()
    (tmp_path / "sweep" / "file").touch()
    (tmp_path / "sweep" / "find_lr").mkdir()
    (tmp_path / "sweep" / "find_lr" / "config.json").write_text(json.dumps(FindLRConfig().to_json()))
    content = compared(tmp_path, tmp_path / "sweep")
    assert labels(content) == [("sweep/seed-0", 2), ("variant/seed-0", 2)]
    warnings = set(capsys.readouterr().err.splitlines())
    shown = (str(young), f"{young.parent}/\\x1b[2J")
    assert warnings == {f"warning: {path}: is unfinished, with 0 of 1 epoch: left out" for path in shown}


def test_a_run_counts_once(tmp_path, monkeypatch):
    a, b = write(tmp_path / "many" / "a"), write(tmp_path / "many" / "b", max_lr=0.1)
    (tmp_path / "link").symlink_to(a)
    monkeypatch.chdir(a)
    content = compared(tmp_path, a, tmp_path / "many", b, a.relative_to(a), tmp_path / "link")
    assert labels(content) == [("a", 1), ("b", 1)]


def test_what_is_no_run_is_refused(tmp_path):
    run = write(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    for path in tmp_path / "empty", run / "history.csv", tmp_path / "missing", tmp_path / ("x" * 300):
        assert refusal(tmp_path, run, path).startswith(f"RUN {path}: ")


def test_one_run_is_refused(tmp_path):
    run, young = write(tmp_path / "run"), write(tmp_path / "young", ())
    for runs in [run], [run, run], [run, young], [tmp_path]:
        given = " ".join(map(str, runs))
        assert refusal(tmp_path, *runs) == f"RUN {given}: must be at least two finished runs; found 1"


def test_damaged_files_are_refused(tmp_path):
    whole, damaged = write(tmp_path / "whole"), write(tmp_path / "damaged")
    for name in "summary.json", "config.json", "history.csv":
        (damaged / name).write_text("no\n1")
        for runs in [whole, damaged], [tmp_path]:
            assert refusal(tmp_path, *runs).startswith(f"{damaged / name}: ")


# Warnings


def test_other_images(tmp_path, capsys, drawn):
    runs = [
        write(tmp_path / "a"),
        write(tmp_path / "b", val_size=100),
        write(tmp_path / "c", dataset="cifar10", summary={"dataset": "cifar10"}),
        write(tmp_path / "d", dataset="cifar10", val_size=50, summary=None),
    ]
    content = compared(tmp_path, *runs)
    seen = ["synthetic test", "synthetic val", "cifar10 test", "cifar10 val"]
    assert [group["evaluated_on"] for group in content["groups"]] == seen
    expected = "the runs differ in --dataset, --val-size: results do not compare"
    assert content["warnings"] == [expected]
    assert capsys.readouterr().err == f"warning: {expected}\n"
    assert drawn[0][1]["split"] == "test or val"


@pytest.mark.parametrize(
    ("second", "warning"),
    [
        ({"max_train_samples": 50}, "differ in --max-train-samples: results do not compare"),
        ({"label_smoothing": 0.0}, "differ in --label-smoothing: losses do not compare"),
        (
            {"seed": 1, "summary": {"device": "cuda", "hardware": {}}},
            "differ in device, hardware: times do not compare",
        ),
        ({"seed": 1, "summary": {"world_size": 1}}, "differ in world_size: times do not compare"),
    ],
)
def test_what_else_does_not_compare(tmp_path, second, warning):
    content = compared(tmp_path, write(tmp_path / "x"), write(tmp_path / "y", **second))
    assert content["warnings"] == [f"the runs {warning}"]


def test_the_same_seed(tmp_path):
    content = compared(tmp_path, write(tmp_path / "x"), write(tmp_path / "y"))
    assert content["warnings"] == [f"x: {SAME_SEED}"]


def test_an_unfinished_run_is_left_out(tmp_path, capsys):
    ended = [write(tmp_path / str(seed), (0.25, 0.5, 0.75), seed=seed) for seed in (0, 1)]
    early = write(tmp_path / "early", (0.125, 0.25), epochs=3, seed=2)
    content = compared(tmp_path, *ended, early)
    assert content["groups"][0]["statistics"]["final_eval_accuracy"]["values"] == [0.75, 0.75]
    assert capsys.readouterr().err == f"warning: {early}: is unfinished, with 2 of 3 epochs: left out\n"


def test_names_from_strangers_are_made_printable(tmp_path, capsys, drawn):
    odd = write(tmp_path / "plain").rename(tmp_path / "_$x^{\33[2J\n*")
    long = write(tmp_path / "second", max_lr=0.1).rename(tmp_path / ("l" * 200))
    content = compared(tmp_path, odd, long)
    out, err = capsys.readouterr()
    assert not re.search(r"[^\n -~]", out + err)
    assert r"_$x^{\x1b[2J\n*" in out
    assert content["groups"][0]["label"] == drawn[0][0][0][0] == r"_$x^{\x1b[2J\n*"
    assert len(content["groups"][1]["label"]) == 60
