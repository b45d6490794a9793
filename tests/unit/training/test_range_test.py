import csv
import json

import numpy as np
import pytest

from s10_resnet.errors import TrainingError
from s10_resnet.training import lr_finder, range_test, recipe, session
from s10_resnet.training.lr_finder import LRCurve
from tests.runs import BOWL, small

pytestmark = pytest.mark.usefixtures("small_parts")


@pytest.fixture
def measured(monkeypatch):
    """Curves by seed, whose bowl lies a tenth of a decade further to the right with each."""

    def curve(run):
        return LRCurve(BOWL.lrs, 1 + (np.log10(BOWL.lrs) + 2.5 - 0.1 * (run.config.seed - 5)) ** 2)

    monkeypatch.setattr(range_test, "measure", curve)
    return curve


def test_the_test_is_that_of_the_training_that_follows(monkeypatch, tmp_path):
    given = {}

    def noted(network, batches, optimizer, criterion, runtime, **keywords):
        given.update(keywords, images=[images.numpy() for images, _ in batches], weights=network.state_dict())
        given.update(optimizer=optimizer, criterion=criterion)
        return BOWL

    monkeypatch.setattr(lr_finder, "range_test", noted)
    settings = {"seed": 3, "weight_decay": 0.2, "label_smoothing": 0.3, "finder_steps": 20, "finder_end_lr": 0.5}
    run = session.begin(small(tmp_path, **settings))
    assert range_test.measure(run) is BOWL
    assert (given["start_lr"], given["end_lr"], given["steps"]) == (1e-6, 0.5, 20)
    assert given["optimizer"].param_groups[0]["weight_decay"] == 0.2
    assert given["criterion"].label_smoothing == 0.3
    first = next(iter(session.loader(run, epochs=1)))[0].numpy()
    np.testing.assert_array_equal(given["images"][0], first)
    weights = session.network(run).state_dict()
    assert all(value.equal(given["weights"][name]) for name, value in weights.items())
    assert len(given["images"]) == 21  # seven epochs of three steps hold the twenty


def test_several_seeds_are_averaged_and_each_is_told(tmp_path, measured, capsys):
    found = recipe.search_lr(small(tmp_path, seed=5, runs=3))
    curves = [measured(session.begin(small(tmp_path, seed=seed))) for seed in (5, 6, 7)]
    assert found == lr_finder.suggest(lr_finder.average(curves))
    content = json.loads((tmp_path / "run" / "lr_finder.json").read_text())
    assert [test["seed"] for test in content["tests"]] == [5, 6, 7]
    alone = [lr_finder.suggest(curve) for curve in curves]
    assert [test["suggestions"] for test in content["tests"]] == [one.suggestions for one in alone]
    assert [test["recommended_max_lr"] for test in content["tests"]] == [one.max_lr for one in alone]
    low, *_, high = (one.max_lr for one in alone)
    out = capsys.readouterr().out
    spread = f"({low:.2e} to {high:.2e}, a factor of {high / low:.2f}, by 3 of 3 alone)"
    assert f"  bowl         {found.max_lr:.2e}  {spread}  <- recommended\n" in out
    assert "--runs" not in out.splitlines()[-1]  # one training is the next step
    with (tmp_path / "run" / "lr_finder.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["lr", "loss", "smoothed_loss", "loss_seed_5", "loss_seed_6", "loss_seed_7"]
    for row in rows:
        assert float(row["loss"]) == pytest.approx(np.mean([float(row[f"loss_seed_{seed}"]) for seed in (5, 6, 7)]))


def test_a_test_that_finds_nothing_is_told_and_the_others_count(tmp_path, monkeypatch, capsys):
    flat = LRCurve(BOWL.lrs, np.full(len(BOWL.lrs), 3.0))
    monkeypatch.setattr(range_test, "measure", lambda run: flat if run.config.seed == 1 else BOWL)
    recipe.search_lr(small(tmp_path, runs=3))
    tests = json.loads((tmp_path / "run" / "lr_finder.json").read_text())["tests"]
    assert [test["recommended_max_lr"] is None for test in tests] == [False, True, False]
    assert "a factor of 1.00, by 2 of 3 alone)  <- recommended" in capsys.readouterr().out


def test_a_first_loss_that_is_no_number_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(range_test, "measure", lambda run: LRCurve(BOWL.lrs[:0], BOWL.losses[:0]))
    with pytest.raises(TrainingError, match="the loss ran away after 0 steps"):
        recipe.search_lr(small(tmp_path))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_one_seed_leaves_its_own_curve_alone(tmp_path, measured, capsys):
    recipe.search_lr(small(tmp_path, seed=5))
    with (tmp_path / "run" / "lr_finder.csv").open(newline="") as file:
        assert next(csv.DictReader(file)).keys() == {"lr", "loss", "smoothed_loss"}
    assert "alone" not in capsys.readouterr().out
