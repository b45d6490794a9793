import json
import math

import pytest
import torch

from s10_resnet import flags
from s10_resnet.config import Config
from s10_resnet.errors import InputError
from s10_resnet.experiments import statistics as spread
from s10_resnet.experiments import sweep
from s10_resnet.experiments.variants import AS_GIVEN
from s10_resnet.options import Sweep
from s10_resnet.training import range_test, recipe
from s10_resnet.training.state import Totals, TrainingState
from s10_resnet.utils import io as files
from s10_resnet.utils.signals import Stopped
from tests.runs import BOWL, at_call, content_of, small

pytestmark = pytest.mark.usefixtures("small_parts")


def small_sweep(folder, *variants, **changes):
    given = {**vars(small(folder)), "val_size": 50, "runs": 2, "seed": 5, "epochs": 1, "variants": variants}
    return Sweep(**{**given, **changes})


@pytest.fixture(scope="module")
def done(small_parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    settings = small_sweep(folder, "max-lr=1e-2,auto", "flip=none ema-decay=0.5")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(range_test, "measure", lambda run: BOWL)
        return folder / "run", sweep.sweep(settings)


@pytest.fixture
def trained(monkeypatch):
    """Variant and seed of every training that is begun."""
    begun, train = [], sweep._trained

    def noted(run, label):
        begun.append((label, run.config.seed))
        return train(run, label)

    monkeypatch.setattr(sweep, "_trained", noted)
    return begun


def known(content):
    return [(row["variant"], row["seed"]) for row in content["runs"]]


def test_every_variant_is_trained_with_every_seed_seed_after_seed(done):
    folder, content = done
    labels = [AS_GIVEN, "max-lr=1e-2", "max-lr=auto", "flip=none ema-decay=0.5"]
    assert known(content) == [(label, seed) for seed in (5, 6) for label in labels]
    assert json.loads((folder / "sweep.json").read_text()) == content
    assert {path.name for path in folder.iterdir()} == {"sweep.json", "sweep.png"}
    assert content["split"] == "val"
    assert content["versions"]["torch"]


def test_a_training_is_the_one_that_train_would_make(done, tmp_path):
    _, content = done
    for label, changes in ((AS_GIVEN, {}), ("flip=none ema-decay=0.5", {"flip": "none", "ema_decay": 0.5})):
        summary = recipe.train(small(tmp_path, name=f"a-{len(label)}", val_size=50, seed=6, epochs=1, **changes))
        (row,) = (row for row in content["runs"] if (row["variant"], row["seed"]) == (label, 6))
        assert row["accuracy_none"] == summary["final_val_accuracy"]
        assert row["train_accuracy"] == summary["final_train_accuracy"]
        assert row["max_lr"] == 0.005


def test_the_learning_rate_is_the_variants_or_the_one_found(done):
    _, content = done
    lrs = {row["variant"]: row["max_lr"] for row in content["runs"]}
    assert lrs["max-lr=1e-2"] == 0.01
    assert lrs["max-lr=auto"] == pytest.approx(10**-2.5, rel=0.2)  # the middle of the bowl


def test_what_each_variant_is_worth(done):
    _, content = done
    reference = [row["accuracy_none"] for row in content["runs"] if row["variant"] == AS_GIVEN]
    for variant in content["variants"]:
        rows = [row for row in content["runs"] if row["variant"] == variant["label"]]
        for views, one in variant["statistics"].items():
            assert one == spread.describe([row[f"accuracy_{views}"] for row in rows])
        if variant["label"] == AS_GIVEN:
            assert variant["difference"] is None
        else:
            assert variant["difference"] == spread.difference([row["accuracy_none"] for row in rows], reference)
        assert variant["failed"] == 0
    assert [variant["changes"] for variant in content["variants"]] == [
        {},
        {"max_lr": 0.01},
        {"max_lr": "auto"},
        {"ema_decay": 0.5, "flip": "none"},
    ]


def test_the_table_comes_last(tmp_path, capsys):
    content = sweep.sweep(small_sweep(tmp_path, "max-lr=1e-2", limit=0, runs=1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 variants, n = 1 each, 2 trainings to go; synthetic: 150 training and 50 val images")
    first, second = (f"{100 * row['accuracy_none']:.2f}" for row in content["runs"])
    assert lines[1].startswith(f"1/2  as given, seed 5: {first} none, ")
    assert lines[3] == f"see {tmp_path / 'run' / 'sweep.json'} and sweep.png"
    assert lines[-3].split("  ")[0] == "settings"
    assert lines[-2].split()[:4] == ["as", "given", "1", first]
    assert lines[-1].split()[:3] == ["max-lr=1e-2", "1", second]
    assert lines[-1].endswith(f"{float(second) - float(first):+.2f}       0")


def test_a_training_that_breaks_is_a_result(tmp_path, capsys, monkeypatch):
    add = Totals.add

    def broken(totals, loss, logits, labels):
        add(totals, loss * (math.nan if sweep_lr[-1] == 1 else 1), logits, labels)

    sweep_lr, train = [], sweep._trained
    monkeypatch.setattr(sweep, "_trained", lambda run, label: sweep_lr.append(run.config.max_lr) or train(run, label))
    monkeypatch.setattr(Totals, "add", broken)
    content = sweep.sweep(small_sweep(tmp_path, "max-lr=1"))
    rows = [row for row in content["runs"] if row["variant"] == "max-lr=1"]
    assert [row["failed"] for row in rows] == ["epoch 1, step 1: the loss is no longer a finite number"] * 2
    assert [(row["accuracy_none"], row["max_lr"]) for row in rows] == [(None, 1.0)] * 2
    good, bad = content["variants"]
    assert (good["failed"], bad["failed"]) == (0, 2)
    assert (bad["statistics"], bad["difference"]) == (None, None)
    assert "max-lr=1, seed 5: failed: epoch 1, step 1" in capsys.readouterr().out
    again = sweep.resume(tmp_path / "run", {})  # what failed has been tried
    assert again["runs"] == content["runs"]


def test_weights_that_broke_in_the_last_step_are_a_failure(tmp_path, monkeypatch):
    end_epoch = TrainingState.end_epoch

    def broken(state, *arguments):
        end_epoch(state, *arguments)
        torch.nn.init.constant_(state.model.resnet.linear.weight, math.nan)

    monkeypatch.setattr(TrainingState, "end_epoch", broken)
    content = sweep.sweep(small_sweep(tmp_path, runs=1))
    assert content["runs"][0]["failed"].endswith("the weights are no longer finite numbers")


def test_a_learning_rate_that_cannot_be_found_is_a_result(tmp_path, monkeypatch):
    curve = type(BOWL)(BOWL.lrs, BOWL.losses * 0 + 2.3)
    monkeypatch.setattr(range_test, "measure", lambda run: curve)
    content = sweep.sweep(small_sweep(tmp_path, "max-lr=auto", runs=1))
    assert content["runs"][1]["failed"].startswith("--max-lr auto: the loss never falls by 5 %")


# Stopping and going on


def test_what_is_stopped_goes_on_where_it_was(tmp_path, done, trained, capsys):
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, Totals, "add", 8)  # of three steps a training: in the third
        with pytest.raises(Stopped):
            sweep.sweep(small_sweep(tmp_path, "flip=none ema-decay=0.5"))
    out = capsys.readouterr().out
    assert trained == [(AS_GIVEN, 5), ("flip=none ema-decay=0.5", 5), (AS_GIVEN, 6)]
    assert out.splitlines()[-1] == f"python scripts/sweep.py --resume {tmp_path / 'run'} goes on"
    assert "\nas given                 1  " in out  # the table so far
    del trained[:]
    content = sweep.resume(tmp_path / "run", {})
    assert trained == [(AS_GIVEN, 6), ("flip=none ema-decay=0.5", 6)]
    whole = {(row["variant"], row["seed"]): row["accuracy_six"] for row in done[1]["runs"]}
    assert {(r["variant"], r["seed"]): r["accuracy_six"] for r in content["runs"]}.items() <= whole.items()


def test_a_sweep_can_grow(tmp_path, trained):
    sweep.sweep(small_sweep(tmp_path, "cutout=0", runs=1))
    del trained[:]
    content = sweep.resume(tmp_path / "run" / "sweep.json", {"runs": 2, "variants": ("cutout=4", "cutout=0")})
    assert sorted(trained) == sorted([("cutout=4", 5), (AS_GIVEN, 6), ("cutout=0", 6), ("cutout=4", 6)])
    assert [variant["label"] for variant in content["variants"]] == [AS_GIVEN, "cutout=0", "cutout=4"]
    assert [variant["statistics"]["none"]["n"] for variant in content["variants"]] == [2, 2, 2]


def test_other_settings_are_refused(done):
    folder, _ = done
    before = content_of(folder)
    with pytest.raises(InputError, match=r"cannot go on with other settings: --epochs 3 \(it was begun with 1\)$"):
        sweep.resume(folder, {"epochs": 3, "workers": 0})
    assert content_of(folder) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("settings"),
        lambda content: content["settings"].update(epochs=0),
        lambda content: content.update(runs=3),
        lambda content: content["runs"].append([]),
        lambda content: content["runs"][0].update(seed="5"),
        lambda content: content["runs"][0].pop("failed"),
        lambda content: content["runs"][0].update(more=1.0),
    ],
)
def test_what_holds_no_sweep_is_refused(done, tmp_path, change):
    content = json.loads(json.dumps(done[1]))
    change(content)
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"^--resume .*: sweep\.json does not hold a sweep$"):
        sweep.resume(tmp_path, {})


@pytest.mark.parametrize("name", ["", "config.json", "sweep.json"])
def test_a_folder_without_a_sweep_is_named(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=rf"^--resume {tmp_path / name}: must be the folder of a sweep"):
        sweep.resume(tmp_path / name, {})


def test_two_processes_do_not_share_a_sweep(done):
    with files.locked(done[0]), pytest.raises(InputError, match="no other process"):
        sweep.resume(done[0], {"runs": 3})


# Before anything is trained


@pytest.mark.parametrize(
    ("variant", "settings", "message"),
    [
        ("batch-size=51", {}, "--batch-size 51: must be at most the number of training images, 50"),
        ("rotation=5", {"augment_on": "device"}, r"--rotation 5\.0: must be 0 with --augment-on device"),
        ("cutout=33", {}, "--cutout 33: must be a whole number"),
    ],
)
def test_a_variant_that_does_not_fit_is_told_at_once(tmp_path, trained, variant, settings, message):
    with pytest.raises(InputError, match=f"^{message}"):
        sweep.sweep(small_sweep(tmp_path, "cutout=0", variant, limit=50, **settings))
    assert not trained
    assert not list(tmp_path.iterdir())


def test_it_is_for_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"^torchrun: "):
        sweep.sweep(small_sweep(tmp_path))


def test_images_are_held_out_unless_it_is_asked_otherwise():
    given = flags.read(Sweep, ["--runs", "5", "max-lr=2e-3,1e-2", "flip=none cutout=0"])
    assert given == {"runs": 5, "variants": ("max-lr=2e-3,1e-2", "flip=none cutout=0")}
    assert Sweep(**given).val_size == 5000
    assert flags.read(Sweep, []) == {}
    assert Sweep.from_json(Sweep(**given).to_json()) == Sweep(**given)


@pytest.mark.parametrize("flag", ["--tensorboard", "--checkpoint-every-minutes"])
def test_what_a_sweep_does_not_do_has_no_flag(flag):
    with pytest.raises(InputError, match="unrecognized arguments"):
        flags.read(Sweep, [flag, "3"])
    assert flags.read(Config, ["--tensorboard"]) == {"tensorboard": True}
