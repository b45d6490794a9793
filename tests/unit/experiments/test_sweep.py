import json
import re
import shutil
import signal

import numpy as np
import pytest

from s10_resnet.config import MAX_SEED, SweepConfig
from s10_resnet.errors import InputError
from s10_resnet.evaluation.tta import TTA_VIEWS, TTAModel
from s10_resnet.experiments.statistics import summarize, welch_interval
from s10_resnet.experiments.sweep import (
    BASELINE,
    METRICS,
    TrialResult,
    _report,
    _run_names,
    expand_variants,
    resume,
    summarize_trials,
    sweep,
)
from s10_resnet.models.pretrained import load_model
from s10_resnet.reporting import sweep_plots
from s10_resnet.training.setup import create_setup
from s10_resnet.training.trainer import train
from s10_resnet.utils import launch
from s10_resnet.utils.io import exclusive_lock, write_json
from s10_resnet.utils.signals import ShutdownRequested
from tests.outcome import CLOCK, outcome, without_clock
from tests.runs import content_of, failing, fault, names_in, nan, send, small

pytestmark = pytest.mark.usefixtures("small_parts")

OTHER = "flip=none cutout-size=4"


def small_sweep(folder, *variants, **changes):
    given = {**dict(small(folder)), "val_size": 50, "num_seeds": 2, "seed": 5, "variants": variants}
    return SweepConfig(**{**given, **changes})


@pytest.fixture(scope="module")
def done(small_parts, tmp_path_factory):
    """The folder and the result of a sweep of two variants with two seeds that nothing interrupted."""
    folder = tmp_path_factory.mktemp("outputs")
    return folder / "run", sweep(small_sweep(folder, OTHER))


def trained(content):
    return [(trial["variant"], trial["seed"]) for trial in content["trials"]]


def without_time(content):
    trials = [{key: value for key, value in trial.items() if key not in CLOCK} for trial in content["trials"]]
    return without_clock({**content, "trials": trials, "settings": {**content["settings"], "output_dir": ""}})


# What is trained


def test_every_variant_is_trained_with_every_seed_seed_after_seed(done):
    folder, content = done
    assert trained(content) == [(BASELINE, 5), (OTHER, 5), (BASELINE, 6), (OTHER, 6)]
    assert json.loads((folder / "sweep.json").read_text()) == content
    runs = {"baseline-seed-5", "baseline-seed-6", "flip-none-cutout-size-4-seed-5", "flip-none-cutout-size-4-seed-6"}
    assert {trial["run"] for trial in content["trials"]} == runs
    assert names_in(folder) == {"sweep.json", "sweep.png", *runs}
    assert (content["dataset"], content["eval_split"], content["eval_images"]) == ("synthetic", "val", 12)
    assert content["versions"]["torch"]
    for trial in content["trials"]:
        config = json.loads((folder / trial["run"] / "config.json").read_text())
        assert (config["seed"], config["name"], config["val_size"]) == (trial["seed"], trial["run"], 50)


def test_a_training_is_the_one_that_train_makes(done, tmp_path):
    folder, content = done
    changes = {"val_size": 50, "seed": 6, "flip": "none", "cutout_size": 4}
    summary = train(small(tmp_path, **changes))
    trial = content["trials"][3]
    assert outcome(folder / trial["run"]) == outcome(tmp_path / "run")
    assert (trial["accuracy"], trial["train_accuracy"]) == (
        summary["final_eval_accuracy"],
        summary["final_train_accuracy"],
    )
    assert (trial["max_lr"], trial["failed"]) == (0.005, "")


def test_accuracies_are_those_of_the_saved_weights_with_each_tta(done):
    folder, content = done
    images, labels = create_setup(small(folder, val_size=50)).eval_tensors()
    assert list(METRICS.values()) == list(TTA_VIEWS)
    for trial in content["trials"]:
        model = load_model(folder / trial["run"], "cpu")
        for metric, tta in METRICS.items():
            assert trial[metric] == (TTAModel(model, tta)(images).argmax(1) == labels).double().mean().item()


def test_the_seed_after_the_largest_is_0(tmp_path):
    assert small_sweep(tmp_path, seed=MAX_SEED, num_seeds=3).seeds == [MAX_SEED, 0, 1]
    content = sweep(small_sweep(tmp_path, seed=MAX_SEED, epochs=1))
    assert trained(content) == [(BASELINE, MAX_SEED), (BASELINE, 0)]


# Variants


def changes(*variants, **settings):
    """Labels, and what each variant changes of the settings as given."""
    expanded = expand_variants(SweepConfig(variants=variants, **settings))
    assert next(iter(expanded)) == BASELINE
    baseline = expanded.pop(BASELINE)
    return {
        label: {name: value for name, value in dict(config).items() if value != getattr(baseline, name)}
        for label, config in expanded.items()
    }


def test_the_settings_as_given_come_first():
    given = SweepConfig(epochs=3, weight_decay=0.1, seed=4, num_seeds=5, name="a-sweep")
    ((label, config),) = expand_variants(given).items()
    assert (label, config.epochs, config.weight_decay, config.val_size, config.seed) == (BASELINE, 3, 0.1, 5000, 4)
    assert config.name == ""


def test_words_together_make_all_combinations_and_apart_they_do_not():
    assert changes("max-lr=2e-3,auto") == {"max-lr=2e-3": {"max_lr": 0.002}, "max-lr=auto": {"max_lr": "auto"}}
    assert changes("cutout-size=4,6 flip=random,none") == {
        "cutout-size=4 flip=random": {"cutout_size": 4, "flip": "random"},
        "cutout-size=4 flip=none": {"cutout_size": 4, "flip": "none"},
        "cutout-size=6 flip=random": {"cutout_size": 6, "flip": "random"},
        "cutout-size=6 flip=none": {"cutout_size": 6, "flip": "none"},
    }
    assert changes("cutout-size=4", "flip=none") == {"cutout-size=4": {"cutout_size": 4}, "flip=none": {"flip": "none"}}


def test_nothing_is_trained_twice():
    assert changes("max-lr=5e-3,0.005,1e-2", "max-lr=0.01", "dirac-init=yes") == {"max-lr=1e-2": {"max_lr": 0.01}}
    assert changes("max-lr=5e-3", max_lr=1e-2) == {"max-lr=5e-3": {"max_lr": 0.005}}


def test_every_variant_has_a_folder_of_its_own():
    labels = ["betas=0.9:0.99", "betas=0.9-0.99", "x" * 99, BASELINE, "flip=none"]
    names = _run_names(labels)
    assert names == {
        "betas=0.9:0.99": "betas-0.9-0.99",
        "betas=0.9-0.99": "variant-1",
        "x" * 99: "variant-2",
        BASELINE: "baseline",
        "flip=none": "flip-none",
    }


# Statistics and table


def trial(variant, seed, accuracy, failed=""):
    return TrialResult(
        variant=variant,
        seed=seed,
        run=f"{variant}-{seed}",
        failed=failed,
        accuracy=accuracy,
        accuracy_tta_flip=accuracy + 0.01,
        accuracy_tta_flip_shift=accuracy + 0.02,
    )


@pytest.fixture
def summarized(tmp_path):
    def of(*trials):
        config = small_sweep(tmp_path, "max-lr=1e-2")
        variants = expand_variants(config)
        return summarize_trials(config, create_setup(variants[BASELINE]), variants, trials)

    return of


def table(content, folder, capsys):
    _report(folder, content)
    assert (folder / "sweep.png").exists()
    blank, title, *lines, last, compare = capsys.readouterr().out.splitlines()
    assert (blank, title) == ("", "accuracy in % on the 12 val images of synthetic after the last epoch")
    assert last == f"see {folder / 'sweep.json'} and sweep.png; to compare the curves:"
    assert compare.endswith(f" {folder}")
    return [re.split(r" {2,}", line.strip()) for line in lines]


def test_each_variant_beside_the_baseline(summarized, tmp_path, capsys):
    trials = [trial(BASELINE, seed, 0.90 + 0.01 * seed) for seed in range(3)]
    trials += [trial("max-lr=1e-2", seed, 0.93 + 0.02 * seed) for seed in range(3)]
    content = summarized(*trials)
    first, second = content["variants"]
    assert (first["changes"], second["changes"]) == ({}, {"max_lr": 0.01})
    assert first["statistics"]["accuracy_tta_flip_shift"] == summarize([one.accuracy + 0.02 for one in trials[:3]])
    expected = welch_interval([one.accuracy for one in trials[3:]], [one.accuracy for one in trials[:3]])
    assert (first["difference"], second["difference"]) == (None, expected)
    header, *lines = table(content, tmp_path, capsys)
    assert header == ["settings", "TTA", "n", "mean", "std", "95 % interval", "values"]
    half = 4.302652729911275 * 1 / np.sqrt(3)  # Student's t with two degrees of freedom
    assert lines[0] == [
        BASELINE,
        "none",
        "3",
        "91.00",
        "1.00",
        f"{91 - half:.2f} to {91 + half:.2f}",
        "90.00 91.00 92.00",
    ]
    assert [line[:3] for line in lines[1:3]] == [["flip", "3", "92.00"], ["flip_shift", "3", "93.00"]]
    assert lines[3][:3] == ["max-lr=1e-2", "none", "3"]
    low, high = (100 * bound for bound in expected["interval"])
    assert lines[6] == ["minus baseline", "none", "+4.00", f"{low:.2f} to {high:.2f}"]
    assert len(lines) == 7


def test_fewer_than_three_values_have_no_interval(summarized, tmp_path, capsys):
    content = summarized(trial(BASELINE, 0, 0.90), trial(BASELINE, 1, 0.91), trial("max-lr=1e-2", 0, 0.93))
    _, first, _, _, other, *_ = table(content, tmp_path, capsys)
    assert first == [BASELINE, "none", "2", "90.50", "0.71", "-", "90.00 91.00"]
    assert other == ["max-lr=1e-2", "none", "1", "93.00", "-", "-", "93.00"]
    assert content["variants"][1]["difference"]["interval"] is None


def test_what_failed_is_counted_and_not_averaged(summarized, tmp_path, capsys):
    failed = trial("max-lr=1e-2", 1, 0.0, failed="epoch 1, step 3: the loss is not finite")
    content = summarized(trial(BASELINE, 0, 0.90), trial("max-lr=1e-2", 0, 0.80), failed)
    assert content["variants"][1]["failed"] == 1
    assert content["variants"][1]["statistics"]["accuracy"] == summarize([0.80])
    only_failed = summarized(trial(BASELINE, 0, 0.90), failed)
    assert (only_failed["variants"][1]["statistics"], only_failed["variants"][1]["difference"]) == (None, None)
    assert table(only_failed, tmp_path, capsys)[-1] == ["max-lr=1e-2", "-", "0", "-", "-", "-", "all failed"]
    assert [variant["difference"] for variant in summarized(trial("max-lr=1e-2", 0, 0.8))["variants"]] == [None, None]


# Trainings that fail


def test_a_training_that_fails_is_a_result(tmp_path, capsys):
    with fault(6, nan):  # the first training has 8 losses
        content = sweep(small_sweep(tmp_path, "max-lr=0.1", num_seeds=1))
    failed, good = content["trials"]
    assert failed["failed"].startswith("epoch 2, step 2: the loss is not finite; ")
    assert (failed["accuracy"], failed["max_lr"], good["failed"], good["max_lr"]) == (0.0, 0.0, "", 0.1)
    assert [variant["failed"] for variant in content["variants"]] == [1, 0]
    assert "1/2  baseline, seed 5: failed: epoch 2, step 2" in capsys.readouterr().out
    with fault(1, failing(AssertionError("a loss was computed"))):  # what failed has been tried
        assert resume(tmp_path / "run")["trials"] == content["trials"]


def test_a_training_that_fails_below_a_path_that_is_not_unicode(tmp_path):
    with fault(6, nan):
        content = sweep(small_sweep(tmp_path / "\udcff", num_seeds=1))
    assert r"\udcff" in content["trials"][0]["failed"]


def test_a_plot_that_cannot_be_drawn_is_a_warning(done, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep_plots, "plot_sweep", failing(FileNotFoundError(2, "No such file", "DejaVuSans.ttf")))
    _report(tmp_path, done[1])
    assert capsys.readouterr().err.startswith("warning: a plot could not be drawn (FileNotFoundError: ")


def test_a_learning_rate_that_is_not_found_is_a_result(tmp_path):
    range_test = {"lr_finder_end_lr": 2e-6, "lr_finder_steps": 20}
    content = sweep(small_sweep(tmp_path, "max-lr=auto", num_seeds=1, epochs=1, **range_test))
    assert [bool(trial["failed"]) for trial in content["trials"]] == [False, True]
    assert content["trials"][1]["failed"].startswith("--max-lr auto: the loss never falls by 5 %")


# Stopping and resuming


@pytest.mark.parametrize("call", [2, 6, 8, 9, 15, 23, 32])  # 8 losses per training, 4 trainings
def test_a_sweep_stopped_anywhere_resumes_to_the_same_bits(tmp_path, done, capsys, call):
    folder, whole = done
    with fault(call, send(signal.SIGTERM)), pytest.raises(ShutdownRequested):
        sweep(small_sweep(tmp_path, OTHER))
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"to continue: {launch.command('sweep', '--resume', tmp_path / 'run')}"
    assert trained(json.loads((tmp_path / "run" / "sweep.json").read_text())) == trained(whole)[: (call - 1) // 8]
    with fault(34 - call, failing(AssertionError("steps were repeated"))):
        content = resume(tmp_path / "run", {"workers": 0})
    assert without_time(content) == without_time({**whole, "settings": {**whole["settings"], "workers": 0}})
    for one in content["trials"]:
        assert outcome(tmp_path / "run" / one["run"]) == outcome(folder / one["run"])


def test_a_sweep_killed_between_training_and_result_trains_nothing_twice(tmp_path, done):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("s10_resnet.experiments.sweep.tta_accuracy", failing(SystemExit()))
        with pytest.raises(SystemExit):
            sweep(small_sweep(tmp_path, num_seeds=1))
    with fault(1, failing(AssertionError("a loss was computed"))):
        content = resume(tmp_path / "run")
    assert content["trials"][0]["accuracy"] == done[1]["trials"][0]["accuracy"]


def test_seeds_and_variants_can_be_added(tmp_path, done):
    sweep(small_sweep(tmp_path, num_seeds=1))
    with fault(25, failing(AssertionError("more than three trainings"))):
        content = resume(tmp_path / "run" / "sweep.json", {"num_seeds": 2, "variants": (OTHER, OTHER)})
    assert trained(content) == [(BASELINE, 5), (OTHER, 5), (BASELINE, 6), (OTHER, 6)]
    assert without_time(content) == without_time(done[1])


def test_a_sweep_of_another_machine_is_resumed_with_the_device_and_the_data_that_are_here(tmp_path, done, monkeypatch):
    folder, file = tmp_path / "run", tmp_path / "run" / "sweep.json"
    with fault(13, send(signal.SIGTERM)), pytest.raises(ShutdownRequested):
        sweep(small_sweep(tmp_path, OTHER))
    for recorded in (file, *folder.glob("*/config.json")):
        content = json.loads(recorded.read_text())
        content.get("settings", content).update(device="cuda:99", data_dir="/gone")
        recorded.write_text(json.dumps(content))
    monkeypatch.setenv("S10_DATA_DIR", str(tmp_path))
    content = resume(folder)
    assert [trial["accuracy"] for trial in content["trials"]] == [trial["accuracy"] for trial in done[1]["trials"]]
    assert (content["settings"]["device"], content["settings"]["data_dir"]) == ("auto", str(tmp_path))


def test_a_finished_sweep_trains_nothing_more(done):
    with fault(1, failing(AssertionError("a loss was computed"))):
        assert resume(done[0]) == done[1]


def test_other_settings_are_refused(done):
    folder, _ = done
    before = content_of(folder / "baseline-seed-5"), (folder / "sweep.json").read_bytes()
    with pytest.raises(InputError) as raised:
        resume(folder, {"epochs": 3, "workers": 0, "seed": 1})
    assert str(raised.value) == (
        f"--resume {folder}: a sweep cannot be resumed with other settings: --epochs 3 (the sweep has 2); "
        "--seed 1 (the sweep has 5)"
    )
    assert (content_of(folder / "baseline-seed-5"), (folder / "sweep.json").read_bytes()) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("settings"),
        lambda content: content["settings"].update(epochs=0),
        lambda content: content.update(trials=3),
        lambda content: content["trials"].append([]),
        lambda content: content["trials"][0].update(seed="5"),
        lambda content: content["trials"][0].pop("run"),
        lambda content: content["trials"][0].update(accuracy=None),
        lambda content: content["trials"][0].update(more=1.0),
    ],
)
def test_a_file_that_holds_no_sweep_is_refused(done, tmp_path, change):
    content = json.loads(json.dumps(done[1]))
    change(content)
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"^--resume .*: sweep\.json does not hold a sweep of this version$"):
        resume(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "null"])
def test_a_file_that_is_no_object_is_refused(tmp_path, content):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(InputError) as raised:
        resume(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["", "config.json", "sweep.json"])
def test_a_folder_without_a_sweep_is_named(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=rf"^--resume {tmp_path / name}: must be the folder of a sweep"):
        resume(tmp_path / name)


def test_two_processes_do_not_share_a_sweep(done):
    with exclusive_lock(done[0]), pytest.raises(InputError, match="no other process"):
        resume(done[0])


def test_a_run_of_a_sweep_is_locked_while_it_is_trained(done, tmp_path):
    folder = shutil.copytree(done[0], tmp_path / "run")
    write_json(folder / "sweep.json", json.loads((folder / "sweep.json").read_text()) | {"trials": []})
    first = min(folder.glob("baseline-seed-*"))
    with exclusive_lock(first), pytest.raises(InputError, match="no other process"):
        resume(folder)


# Before anything is trained


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("batch-size=51", "--batch-size 51: must be at most the number of training images, 50"),
        ("cutout-size=33", "--cutout-size 33: must be an integer"),
        ("speed=3", "VARIANT speed=3: "),
    ],
)
def test_a_variant_that_does_not_fit_is_reported_at_once(tmp_path, variant, message):
    with pytest.raises(InputError, match=f"^{message}"):
        sweep(small_sweep(tmp_path, "cutout-size=0", variant, max_train_samples=50))
    assert not list(tmp_path.iterdir())


def test_a_sweep_runs_in_a_single_process(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match=r"^torchrun: "):
        sweep(small_sweep(tmp_path))
    assert not list(tmp_path.iterdir())
