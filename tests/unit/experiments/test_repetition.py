import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from s10_resnet.errors import InputError
from s10_resnet.evaluation import evaluate as evaluation
from s10_resnet.evaluation.tta import VIEWS, Averaged
from s10_resnet.experiments import repetition
from s10_resnet.models.pretrained import load_model
from s10_resnet.training import loop as engine
from s10_resnet.training import recipe, session
from s10_resnet.training.state import Totals
from s10_resnet.utils import console as terminal
from s10_resnet.utils import outputs
from s10_resnet.utils.signals import Stopped
from tests.runs import at_call, small

pytestmark = pytest.mark.usefixtures("small_parts")


def repeated(folder, **changes):
    return small(folder, name="all", **{"runs": 3, "seed": 5, "epochs": 1, **changes})


@pytest.fixture(scope="module")
def done(small_parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    return folder / "all", recipe.train(repeated(folder))


@pytest.fixture
def trained(monkeypatch):
    """The seeds of the trainings that are begun or gone on with."""
    seeds, carry_out = [], recipe.training.carry_out

    def noted(run, *more):
        seeds.append(run.config.seed)
        return carry_out(run, *more)

    monkeypatch.setattr(recipe.training, "carry_out", noted)
    return seeds


def test_each_seed_has_a_run_of_its_own(done):
    folder, content = done
    assert sorted(path.name for path in folder.iterdir()) == ["runs.json", "seed-5", "seed-6", "seed-7"]
    assert json.loads((folder / "runs.json").read_text()) == content
    assert [row["seed"] for row in content["runs"]] == [5, 6, 7]
    for row in content["runs"]:
        config = json.loads((folder / row["folder"] / "config.json").read_text())
        assert (config["seed"], config["runs"], config["name"]) == (row["seed"], 1, row["folder"])
        summary = json.loads((folder / row["folder"] / "summary.json").read_text())
        assert row["accuracy_none"] == summary["final_test_accuracy"]
        assert (row["max_lr"], row["train_seconds"]) == (summary["max_lr"], summary["train_seconds"])
    assert content["config"]["runs"] == 3
    assert content["versions"]["torch"]


def test_a_run_is_what_it_would_be_alone(done, tmp_path):
    folder, _ = done
    recipe.train(replace(repeated(tmp_path), runs=1, seed=6))
    paths = (folder / "seed-6", tmp_path / "all")
    one, other = (torch.load(path / "last.pt", weights_only=True)["model"] for path in paths)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_accuracies_are_those_of_the_views(done):
    folder, content = done
    for row in content["runs"]:
        trained = load_model(folder / row["folder"] / "last.pt", "cpu")
        images, labels, _ = session.begin(small(folder)).evaluation
        for views in VIEWS:
            logits = engine.predict(Averaged(trained.network, views), torch.from_numpy(images), trained.runtime)
            assert row[f"accuracy_{views}"] == pytest.approx((logits.argmax(1).numpy() == labels).mean())


def test_each_kind_of_views_has_its_own_accuracy(done, monkeypatch):
    folder, _ = done
    labels = torch.from_numpy(session.begin(small(folder)).evaluation.labels)
    right = {"none": 3, "flip": 6, "six": 9}

    def predict(views, images, runtime):
        answers = torch.where(torch.arange(len(labels)) < right[views], labels, (labels + 1) % 10)
        return torch.nn.functional.one_hot(answers, 10)

    monkeypatch.setattr(evaluation, "Averaged", lambda network, views: views)
    monkeypatch.setattr(engine, "predict", predict)
    summary = json.loads((folder / "seed-5" / "summary.json").read_text())
    row = repetition._row(small(folder), folder / "seed-5", summary)
    assert [row[f"accuracy_{views}"] for views in right] == [3 / 12, 6 / 12, 9 / 12]


def test_statistics(done):
    _, content = done
    assert list(content["statistics"]) == ["none", "flip", "six"]
    for views, one in content["statistics"].items():
        values = [row[f"accuracy_{views}"] for row in content["runs"]]
        assert (one["n"], one["values"]) == (3, values)
        assert one["mean"] == pytest.approx(np.mean(values))


def test_what_is_printed(tmp_path, capsys, monkeypatch):
    bars = []
    monkeypatch.setattr(terminal, "bar", lambda items, *about: bars.append(about) or iter(items))
    content = recipe.train(repeated(tmp_path, runs=2))
    assert bars == [(2, "runs", "run")]
    out = capsys.readouterr().out
    assert "run 1 of 2: seed 5\n" in out
    lines = out.splitlines()
    assert lines[-7] == "accuracy after the last epoch in %, synthetic, test images, n = 2"
    assert lines[-6].split() == ["test-time", "augmentation", "mean", "std", "95", "%", "interval", "every", "run"]
    for line, (views, one) in zip(lines[-5:-2], content["statistics"].items(), strict=True):
        low, high = (f"{100 * value:.2f}" for value in one["interval"])
        values = [f"{100 * value:.2f}" for value in one["values"]]
        assert line.split() == [views, f"{100 * one['mean']:.2f}", f"{100 * one['std']:.2f}", low, "to", high, *values]
    assert lines[-1].startswith(f"see {tmp_path / 'all' / 'runs.json'}; python scripts/compare.py {tmp_path / 'all'} ")


@pytest.mark.parametrize(("step", "seeds"), [(5, [5, 6, 7]), (8, [6, 7])])  # of six steps a run
def test_runs_go_on_in_the_middle_of_one(tmp_path, trained, monkeypatch, capsys, step, seeds):
    whole = recipe.train(repeated(tmp_path / "whole", epochs=2))
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, Totals, "add", step, signal.SIGTERM)
        with pytest.raises(Stopped):
            recipe.train(repeated(tmp_path, epochs=2))
    out = capsys.readouterr().out
    assert out.endswith(f"\npython scripts/train.py --resume {tmp_path / 'all'} goes on with all runs\n")
    done = json.loads((tmp_path / "all" / "runs.json").read_text())["runs"]
    assert [row["seed"] for row in done] == [5, 6, 7][: 3 - len(seeds)]
    trained.clear()
    content = recipe.resume(tmp_path / "all", {})
    assert trained == seeds
    assert content["statistics"] == whole["statistics"]
    trained.clear()
    monkeypatch.setattr(repetition, "_row", None)  # nor is anything evaluated again
    assert recipe.resume(tmp_path / "all", {"workers": 0})["runs"] == content["runs"]
    assert trained == []


def test_runs_go_on_between_two(tmp_path, trained, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repetition, "_row", lambda *_: 1 / 0)  # killed before the first run was evaluated
        with pytest.raises(ZeroDivisionError):
            recipe.train(repeated(tmp_path))
    (tmp_path / "all" / "seed-6").mkdir()  # and another one right after its folder was made
    trained.clear()
    content = recipe.resume(tmp_path / "all", {})
    assert trained == [6, 7]
    assert [row["seed"] for row in content["runs"]] == [5, 6, 7]


def test_other_settings_are_refused(done, tmp_path):
    folder, _ = done
    with pytest.raises(InputError, match=r"runs cannot go on with other settings: --epochs 2 \(the run was begun"):
        recipe.resume(folder, {"epochs": 2})
    with pytest.raises(InputError, match=r"--runs 4"):
        recipe.resume(folder, {"runs": 4})
    for text in ("{}", "[]", '{"config": 1, "runs": []}', '{"config": {}, "runs": 3}'):
        (tmp_path / "runs.json").write_text(text)
        with pytest.raises(InputError, match=r"runs\.json does not hold the settings of runs$"):
            recipe.resume(tmp_path, {})


def test_rows_that_are_not_ours_are_made_anew(done, tmp_path):
    _, content = done
    config = repeated(tmp_path, runs=1)
    recipe.train(replace(config, output_dir=tmp_path / "all", name="seed-5"))
    true = content["runs"][0]
    for forged in ({"seed": 5, "accuracy_none": 1.0}, {**true, "accuracy_none": "all"}, [], "x"):
        runs = {"config": replace(config, runs=2).to_json(), "runs": [forged]}
        outputs.write_json(tmp_path / "all" / "runs.json", runs)
        assert recipe.resume(tmp_path / "all", {})["runs"][0]["accuracy_none"] == true["accuracy_none"]


def test_nothing_is_left_by_what_does_not_fit(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"^--batch-size 500: must be at most"):
        recipe.train(repeated(tmp_path, batch_size=500))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"^--runs 3: must be 1 under torchrun$"):
        recipe.train(repeated(tmp_path))
    assert not list(tmp_path.iterdir())


def test_seeds_begin_again_after_the_last(tmp_path, monkeypatch):
    seeds = []
    monkeypatch.setattr(repetition, "_finished", lambda config, *_: (seeds.append(config.seed), 0))
    row = {**dict.fromkeys(repetition.Row.__annotations__, 0.5), "device": "cpu"}
    monkeypatch.setattr(repetition, "_row", lambda *_: row)
    recipe.train(repeated(tmp_path, seed=2**32 - 1, runs=2))
    assert seeds == [2**32 - 1, 0]


def test_two_processes_do_not_work_in_one_folder(done):
    folder, _ = done
    with repetition.files.locked(folder), pytest.raises(InputError, match="no other process is working on"):
        recipe.resume(folder, {})
