import json
import math
import re
import statistics
from collections import Counter
from dataclasses import asdict

import pytest
from matplotlib.figure import Figure

from s10_resnet.config import Config
from s10_resnet.errors import InputError
from s10_resnet.experiments import compare as comparison
from s10_resnet.options import Comparison
from s10_resnet.reporting import plots
from s10_resnet.training import run_logger as notes
from s10_resnet.training.state import EpochRecord
from s10_resnet.utils import outputs

DRAW = plots.comparison
DASH = "\N{EN DASH}"
HARDWARE = {"accelerator": None, "cpu": "a CPU", "threads": 2, "system": "Linux"}
DAMAGED = {
    "no JSON": ("config.json", b"{", "is not JSON"),
    "no object": ("config.json", b"[]", "does not hold the settings of a run"),
    "a tree": ("config.json", b'{"epochs": {"a": 1}}', "does not hold the settings of a run"),
    "a deep list": ("config.json", b'{"epochs": [[1]]}', "does not hold the settings of a run"),
    "an infinity": ("config.json", b'{"max_lr": 1e999}', "does not hold the settings of a run"),
    "no table": ("history.csv", b"epoch\none\n", "is not a table of numbers under a head"),
    "another table": ("history.csv", b"lr,loss\n1,2\n", "is not the history of a run"),
    "no summary": ("summary.json", b"nonsense", "is not JSON"),
    "an empty summary": ("summary.json", b"{}", "is not the summary of the run whose history.csv is beside it"),
    "a list": ("summary.json", b"[1]", "is not the summary of the run whose history.csv is beside it"),
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Waits for no disk, and draws nothing unless a test asks for `pictures`."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr(plots, "comparison", lambda groups, **_: Figure((1, 1)))


def write(folder, accuracies=(0.5, 0.6), *, seed=0, split="test", status="completed", drop=(), summary=(), **changes):
    """The text files of a run, as it writes them itself."""
    folder.mkdir(parents=True)
    dataset = dict(summary).get("dataset", "synthetic")
    config = Config(**{"dataset": dataset, "seed": seed, "name": folder.name, "output_dir": folder.parent, **changes})
    settings = config.to_json()
    outputs.write_json(folder / "config.json", {name: settings[name] for name in settings if name not in drop})
    history = [
        EpochRecord(
            epoch, 2 / epoch, accuracy - 0.05, 1.5 / epoch + seed, accuracy, 1e-3, 10.0 + epoch, 1.0, 100.0 * epoch
        )
        for epoch, accuracy in enumerate(accuracies, 1)
    ]
    if history:
        outputs.write_rows(folder / "history.csv", notes.named(history, split))
    if history and status:
        content = {"status": status, "dataset": dataset, "epochs": len(history), "device": "cpu", "hardware": HARDWARE}
        outputs.write_json(folder / "summary.json", {**content, **dict(summary)})
    return folder


def compared(tmp_path, *runs, name="result"):
    return comparison.compare(Comparison(runs=runs, output_dir=tmp_path / "out", name=name))


def refusal(tmp_path, *runs):
    with pytest.raises(InputError) as caught:
        compared(tmp_path, *runs)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def labels(content):
    return [(group["label"], group["n"]) for group in content["groups"]]


@pytest.fixture
def pictures(monkeypatch):
    """What was drawn: the arguments of each call."""
    calls = []

    def spy(groups, **keywords):
        calls.append((groups, keywords))
        return DRAW(groups, **keywords)

    monkeypatch.setattr(plots, "comparison", spy)
    return calls


def test_figures_of_runs_that_differ_in_the_seed_alone(tmp_path):
    accuracies = {1: (0.5, 0.8, 0.7), 2: (0.6, 0.7, 0.75), 5: (0.4, 0.9, 0.95)}
    runs = [write(tmp_path / f"run-{seed}", values, seed=seed) for seed, values in accuracies.items()]
    other = write(tmp_path / "other", (0.3, 0.2), max_lr=0.01)
    content = compared(tmp_path, *runs, other)
    assert labels(content) == [("run", 3), ("other", 1)]
    figures = content["groups"][0]["figures"]
    for name, values in (
        ("final_test_accuracy", [0.7, 0.75, 0.95]),
        ("best_test_accuracy", [0.8, 0.75, 0.95]),
        ("final_test_loss", [1.5, 2.5, 5.5]),
        ("final_train_accuracy", [0.65, 0.7, 0.9]),
        ("best_epoch", [2, 3, 3]),
        ("train_seconds", [36, 36, 36]),
        ("images_per_second", [(1100 + 2400 + 3900) / 36] * 3),  # images over seconds, not a mean of speeds
    ):
        assert figures[name]["values"] == pytest.approx(values)
        assert figures[name]["mean"] == pytest.approx(statistics.fmean(values))
        assert figures[name]["std"] == pytest.approx(statistics.stdev(values), abs=1e-9)
    assert [run["seed"] for run in content["groups"][0]["runs"]] == [1, 2, 5]
    assert [run["final_test_accuracy"] for run in content["groups"][0]["runs"]] == [0.7, 0.75, 0.95]
    single = content["groups"][1]["figures"]["best_test_accuracy"]
    assert single == {"mean": 0.3, "std": None, "values": [0.3]}
    assert content["differing_settings"] == {"max_lr": {"run": 0.005, "other": 0.01}}


def test_what_it_prints_and_leaves(tmp_path, capsys, pictures):
    runs = [write(tmp_path / f"run-{seed}", (0.5, accuracy), seed=seed) for seed, accuracy in enumerate((0.7, 0.8))]
    other = write(tmp_path / "other", (0.25,), dirac_init=True, optimizer_betas=(0.8, 0.9), limit=500)
    content = compared(tmp_path, *runs, other)
    out, err = capsys.readouterr()
    folder = tmp_path / "out" / "result"
    assert {path.name for path in folder.iterdir()} == {"curves.png", "comparison.json", "table.md"}
    assert json.loads((folder / "comparison.json").read_text()) == content
    tables = [
        ["run", "n", "evaluated on", "epochs", "accuracy, %", "best, %", "loss", "train s", "images/s"],
        ["run", "2", "synthetic test", "2", "75.00 ± 7.07", "75.00 ± 7.07", "1.2500 ± 0.7071", "23.0 ± 0.0", "152 ± 0"],
        ["other", "1", "synthetic test", "1", "25.00", "25.00", "1.5000", "11.0", "100"],
        [],
        ["setting", "run", "other"],
        ["--optimizer-betas", "0.9 0.99", "0.8 0.9"],
        ["--dirac-init", "no", "yes"],
        ["--limit", "0", "500"],
        [],
    ]
    *printed, last = out.splitlines()
    assert [re.split(r"  +", line) if line else [] for line in printed] == tables
    assert len({len(line) for line in printed[:3]}) == len({len(line) for line in printed[4:8]}) == 1
    assert last == f"see {folder / 'curves.png'}, comparison.json and table.md"
    written = [[cell.strip() for cell in line.strip("|").split("|")] for line in table_lines(folder)]
    assert [row for row in written if "---" not in row] == [row for row in tables[:-1] if row]
    assert err == "warning: the runs differ in --limit, and so in the images: figures do not compare\n"
    ((groups, keywords),) = pictures
    assert [(label, values["eval_accuracy"].tolist()) for label, values in groups] == [
        ("run", [[0.5, 0.7], [0.5, 0.8]]),
        ("other", [[0.25]]),
    ]
    assert keywords == {"split": "test", "title": "Loss and accuracy of 3 runs (synthetic data)"}


def table_lines(folder):
    return [line for line in (folder / "table.md").read_text().splitlines() if line]


def test_what_does_not_matter_to_the_result_makes_no_group(tmp_path):
    free = {"data_dir": tmp_path, "workers": 3, "device": "cpu", "checkpoint_every_minutes": 1.0}
    runs = [write(tmp_path / "a" / "x1"), write(tmp_path / "b" / "x2", seed=1, **free)]
    content = compared(tmp_path, *runs)
    assert labels(content) == [("x", 2)]
    assert content["differing_settings"] == {}


def test_without_a_difference_it_says_so(tmp_path, capsys):
    compared(tmp_path, write(tmp_path / "x1"), write(tmp_path / "x2", seed=1))
    assert "no setting differs but for the seed\n" in capsys.readouterr().out
    assert "setting" not in (tmp_path / "out" / "result" / "table.md").read_text()


def test_numbers_are_equal_however_they_are_written_and_no_switches(tmp_path):
    runs = [write(tmp_path / name, seed=i) for i, name in enumerate("abc")]
    for run, weight_decay, switch in zip(runs, (1, 1.0, 1), (True, True, 1), strict=True):
        content = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps({**content, "weight_decay": weight_decay, "dirac_init": switch}))
    content = compared(tmp_path, *runs)
    assert labels(content) == [("a and 1 more", 2), ("c", 1)]
    assert list(content["differing_settings"]) == ["dirac_init"]


# Which runs


def test_a_folder_of_runs_stands_for_them(tmp_path, capsys):
    for seed in range(3):
        write(tmp_path / "many" / f"seed-{seed}", seed=seed)
    write(tmp_path / "many" / "seed-3", (), seed=3)
    (tmp_path / "many" / "file").touch()
    content = compared(tmp_path, tmp_path / "many")
    assert labels(content) == [("many", 3)]
    assert [run["seed"] for run in content["groups"][0]["runs"]] == [0, 1, 2]
    err = capsys.readouterr().err
    assert err == f"{tmp_path / 'many' / 'seed-3'} is left out: it has no epoch to compare\n"


def test_a_folder_of_several_groups_names_none_of_them(tmp_path):
    for i, lr in enumerate((0.1, 0.1, 0.2)):
        write(tmp_path / "many" / f"lr{lr}-{i}", seed=i, max_lr=lr)
    assert labels(compared(tmp_path, tmp_path / "many")) == [("lr0.1", 2), ("lr0.2-2", 1)]


def test_a_run_counts_once(tmp_path, monkeypatch):
    a, b = write(tmp_path / "many" / "a"), write(tmp_path / "many" / "b", max_lr=0.1)
    (tmp_path / "link").symlink_to(a)
    monkeypatch.chdir(a)
    content = compared(tmp_path, a, tmp_path / "many", b, a.relative_to(a), tmp_path / "link")
    assert labels(content) == [("a", 1), ("b", 1)]


def test_the_folder_one_stands_in_has_a_name(tmp_path, monkeypatch):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", max_lr=0.1)
    monkeypatch.chdir(a)
    assert labels(compared(tmp_path, a.relative_to(a), b)) == [("a", 1), ("b", 1)]


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (("seed-10", "seed-11"), "seed"),
        (("lr0.1-a", "lr0.1-b"), "lr0.1"),
        (("run", "run-1"), "run"),
        (("run-1", "run-12"), "run"),
        (("one", "two"), "one and 1 more"),
        (("1", "2"), "1 and 1 more"),
    ],
)
def test_the_label_of_a_group_is_what_its_names_share(tmp_path, names, label):
    runs = [write(tmp_path / name, seed=i) for i, name in enumerate(names)]
    assert labels(compared(tmp_path, *runs)) == [(label, 2)]


def test_labels_differ(tmp_path):
    runs = [write(tmp_path / str(i) / "p" / name, max_lr=0.1 + i) for i, name in enumerate(("x", "x", "y"))]
    assert labels(compared(tmp_path, *runs)) == [("p/x", 1), ("p/x #2", 1), ("y", 1)]
    runs = [write(tmp_path / parent / "x", max_lr=lr) for parent, lr in (("a", 0.1), ("b", 0.2))]
    assert labels(compared(tmp_path, *runs, name="more")) == [("a/x", 1), ("b/x", 1)]


# What is marked and warned of


@pytest.mark.parametrize(
    ("status", "epochs", "mark"),
    [
        ("interrupted", 2, "interrupted"),
        ("failed", 2, "failed"),
        (None, 2, "unfinished"),
        ("interrupted", 1, "unfinished"),
    ],
)
def test_a_run_that_did_not_come_to_its_end_is_marked(tmp_path, capsys, pictures, status, epochs, mark):
    whole, part = write(tmp_path / "whole"), write(tmp_path / "part", status=status, max_lr=0.1)
    if status:
        summary = json.loads((part / "summary.json").read_text())
        (part / "summary.json").write_text(json.dumps({**summary, "epochs": epochs}))  # it was resumed since
    content = compared(tmp_path, whole, part)
    assert [group["runs"][0]["status"] for group in content["groups"]] == ["completed", mark]
    out = capsys.readouterr().out
    assert f"\npart ({mark})  " in out
    assert "\nwhole  " in out
    assert [label for label, _ in pictures[0][0]] == ["whole", f"part ({mark})"]


def test_a_group_of_different_lengths(tmp_path, capsys, pictures):
    runs = [write(tmp_path / "x1", (0.1, 0.2, 0.3)), write(tmp_path / "x2", (0.4, 0.5), seed=1, status="interrupted")]
    content = compared(tmp_path, *runs)
    assert content["groups"][0]["figures"]["final_test_accuracy"]["values"] == [0.3, 0.5]
    (((label, values),), _) = pictures[0]
    assert label == "x (1 of 2 interrupted)"
    assert values["eval_accuracy"].tolist() == [[0.1, 0.2], [0.4, 0.5]]
    out, err = capsys.readouterr()
    assert re.search(r"\nx \(1 of 2 interrupted\) +2 +synthetic test +2 to 3 ", out)
    assert "different lengths" in err


def test_other_images_are_warned_of(tmp_path, capsys, pictures):
    runs = [
        write(tmp_path / "a"),
        write(tmp_path / "b", split="val", val_size=100),
        write(tmp_path / "c", dataset="auto", summary={"dataset": "cifar10"}),
        write(tmp_path / "d", dataset="auto", summary={"dataset": "synthetic"}, seed=1),
    ]
    content = compared(tmp_path, *runs)
    assert [(g["dataset"], g["split"], g["n"]) for g in content["groups"]] == [
        ("synthetic", "test", 2),  # auto came to what the other asked for
        ("synthetic", "val", 1),
        ("cifar10", "test", 1),
    ]
    assert "final_val_accuracy" in content["groups"][1]["figures"]
    assert "final_test_accuracy" not in content["groups"][1]["figures"]
    (warning,) = content["warnings"]
    expected = "the runs were evaluated on different images (synthetic test, synthetic val, cifar10 test)"
    assert warning == f"{expected}: figures do not compare"
    assert capsys.readouterr().err == f"warning: {warning}\n"
    title = "Loss and accuracy of 4 runs (3 on synthetic data)"
    assert pictures[0][1] == {"split": "test or val", "title": title}


def test_runs_on_the_same_images_are_not_warned_of(tmp_path, capsys):
    assert compared(tmp_path, write(tmp_path / "a"), write(tmp_path / "b", (0.1,), max_lr=0.1))["warnings"] == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("second", "warning"),
    [
        ({"seed": 0}, "x has runs of the same seed (0): they are not independent of each other"),
        ({"seed": 1, "summary": {"device": "cuda"}}, "the runs differ in device: times do not compare"),
        ({"seed": 1, "summary": {"processes": 2, "hardware": {}}}, "the runs differ in hardware: times do not compare"),
        (
            {"label_smoothing": 0.0},
            "the runs differ in --label-smoothing, which is part of the loss: losses do not compare",
        ),
    ],
)
def test_what_else_does_not_compare(tmp_path, second, warning):
    assert compared(tmp_path, write(tmp_path / "x1"), write(tmp_path / "x2", **second))["warnings"] == [warning]


# Strangers and other versions


def test_a_setting_that_one_version_lacks(tmp_path, capsys):
    content = compared(tmp_path, write(tmp_path / "old", drop=["ema_decay"]), write(tmp_path / "new", seed=1))
    assert labels(content) == [("old", 1), ("new", 1)]
    assert content["differing_settings"] == {"ema_decay": {"new": 0.0}}
    assert re.search(rf"\n--ema-decay +{DASH} +0\.0\n", capsys.readouterr().out)


@pytest.mark.parametrize("loss", ["nan", "inf", "-inf", "1e300"])
def test_a_loss_that_is_no_number(tmp_path, capsys, pictures, loss):
    runs = [write(tmp_path / "a"), write(tmp_path / "b", max_lr=0.1)]
    text = (runs[0] / "history.csv").read_text()
    (runs[0] / "history.csv").write_text(text.replace("0.75,0.6", f"{loss},0.6"))
    content = compared(tmp_path, *runs)
    assert content["groups"][0]["figures"]["final_test_loss"] == {"mean": None, "std": None, "values": [None]}
    assert re.search(rf"\na .* 60\.00 +60\.00 +{DASH} ", capsys.readouterr().out)


def test_what_strangers_call_things_is_only_shown(tmp_path, capsys, pictures):
    odd = write(tmp_path / "plain").rename(tmp_path / "_$x^{\33[2J|<b>\n*")
    long = write(tmp_path / "second", max_lr=0.1).rename(tmp_path / ("l" * 200))
    content = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps({**content, "anneal": "\33]0;gone\7 | `rm`", "\r--x": "y" * 300}))
    content = compared(tmp_path, odd, long)
    out = capsys.readouterr().out
    assert not re.search(r"[^\n]\n?[\0-\x09\x0b-\x1f]", out)
    assert "_$x^{?[2J|<b>?*" in out
    assert max(map(len, out.splitlines()[:6])) < 160
    lines = table_lines(tmp_path / "out" / "result")
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {10, 4}
    assert r"\_$x^{?[2J" not in lines[2]
    assert r"\_\$x^{?\[2J\|\<b\>?\*" in lines[2]


@pytest.mark.parametrize(("name", "content", "complaint"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_named(tmp_path, name, content, complaint):
    whole, damaged = write(tmp_path / "whole"), write(tmp_path / "damaged")
    (damaged / name).write_bytes(content)
    assert refusal(tmp_path, whole, damaged) == f"{damaged / name}: {complaint}"
    assert refusal(tmp_path, whole, tmp_path) == f"{damaged / name}: {complaint}"  # found below a folder, too


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.5,0.001", "1.5,0.001"),  # an accuracy
        ("0.5,0.001", "nan,0.001"),
        ("\r\n2,", "\r\n3,"),  # an epoch
        ("11.0,1.0", "0.0,1.0"),  # seconds
        ("11.0,1.0", "inf,1.0"),
        ("train_loss", "loss"),
        ("test_", "_"),
        ("test_accuracy", "accuracy"),
        ("lr", "val_accuracy"),
    ],
)
def test_a_history_that_cannot_be_is_named(tmp_path, old, new):
    whole, damaged = write(tmp_path / "whole"), write(tmp_path / "damaged")
    text = (damaged / "history.csv").read_bytes().decode()
    assert old in text
    (damaged / "history.csv").write_bytes(text.replace(old, new).encode())
    assert refusal(tmp_path, whole, damaged) == f"{damaged / 'history.csv'}: is not the history of a run"


def test_a_summary_of_more_epochs_than_there_are(tmp_path):
    whole, damaged = write(tmp_path / "whole"), write(tmp_path / "damaged", summary={"epochs": 3})
    assert refusal(tmp_path, whole, damaged).startswith(f"{damaged / 'summary.json'}: is not the summary")


def test_what_is_no_run_is_refused(tmp_path):
    run = write(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    for path in tmp_path / "empty", run / "config.json", tmp_path / "missing", tmp_path / ("x" * 300):
        assert refusal(tmp_path, run, path).startswith(f"RUN {path}: must be the folder of a run, or of several runs")


def test_a_run_without_an_epoch_is_refused(tmp_path):
    run, young = write(tmp_path / "run"), write(tmp_path / "more" / "young", ())
    complaint = "must have an epoch that has ended, and has no history.csv with one yet"
    assert refusal(tmp_path, run, young) == f"RUN {young}: {complaint}"
    assert refusal(tmp_path, run, young.parent) == f"RUN {young.parent}: {complaint}"
    (young / "history.csv").write_text("epoch,train_loss\r\n")
    assert refusal(tmp_path, run, young) == f"RUN {young}: {complaint}"


def test_one_run_is_refused(tmp_path):
    run = write(tmp_path / "run")
    expected = "must be at least two runs, or a folder of them; this is one"
    assert refusal(tmp_path, run, run) == f"RUN {run} {run}: {expected}"
    assert refusal(tmp_path, tmp_path) == f"RUN {tmp_path}: {expected}"


def test_a_name_that_is_taken_is_refused_before_anything_is_said(tmp_path, capsys):
    runs = write(tmp_path / "a"), write(tmp_path / "b", max_lr=0.1)
    compared(tmp_path, *runs)
    before = {path: path.read_bytes() for path in (tmp_path / "out" / "result").iterdir()}
    capsys.readouterr()
    with pytest.raises(InputError, match=r"^--name result: must be a new name"):
        compared(tmp_path, *runs)
    assert capsys.readouterr() == ("", "")
    assert {path: path.read_bytes() for path in (tmp_path / "out" / "result").iterdir()} == before


def test_the_default_name(tmp_path):
    compared(tmp_path, write(tmp_path / "a"), write(tmp_path / "b", max_lr=0.1), name="")
    (folder,) = (tmp_path / "out").iterdir()
    assert re.fullmatch(r"compare-\d{8}-\d{6}", folder.name)


# What real runs leave


def test_real_runs(tmp_path, finished, half):
    _, folder, summary = finished
    content = compared(tmp_path, folder, half)
    (group,) = content["groups"]
    assert Counter(run["status"] for run in group["runs"]) == {"completed": 1, "interrupted": 1}
    assert [run["epochs"] for run in group["runs"]] == [2, 1]
    first = group["runs"][0]
    shared = {name: value for name, value in first.items() if name in summary}
    assert len(shared) >= 10
    for name, value in shared.items():
        assert value == (pytest.approx(summary[name]) if isinstance(value, float) else summary[name])


def test_no_weights_are_read(tmp_path, monkeypatch):
    runs = write(tmp_path / "a"), write(tmp_path / "b", max_lr=0.1)
    for name in "last.pt", "best.pt", "checkpoint.pt":
        (runs[0] / name).mkdir()  # which would fail
    monkeypatch.setattr("torch.load", None)
    assert labels(compared(tmp_path, *runs)) == [("a", 1), ("b", 1)]


def test_the_records_are_those_of_a_training():
    """The columns that are read here are fields of what is written there."""
    record = asdict(EpochRecord(1, *[0.5] * 8))
    assert {"epoch", *comparison.CURVES, "train_seconds", "images_per_second"} <= record.keys()
    assert math.isfinite(sum(record.values()))
