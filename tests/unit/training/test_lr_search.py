import csv
import io
import json

import numpy as np
import pytest
import torch

from s10_resnet.reporting import plots
from s10_resnet.training import lr_search
from s10_resnet.training.lr_finder import RULES, LRCurve, smooth, suggest
from s10_resnet.training.lr_search import run_range_test, search_lr
from s10_resnet.training.setup import create_setup
from tests.runs import PARABOLA, failing, fault, names_in, nan, small

pytestmark = pytest.mark.usefixtures("small_parts")


def test_the_range_test_is_that_of_the_training_that_follows(tmp_path):
    """The same weights, batches and settings as a training's, against a loop by hand."""
    changes = {"seed": 3, "weight_decay": 0.2, "label_smoothing": 0.3, "betas": (0.8, 0.9)}
    range_test = {"lr_finder_steps": 20, "lr_finder_start_lr": 1e-5, "lr_finder_end_lr": 0.1}
    setup = create_setup(small(tmp_path, **changes, **range_test))
    curve = run_range_test(setup)

    model = setup.build_state(1.0).model.train()
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.2},
            {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=(0.8, 0.9),
    )
    lrs, losses = np.geomspace(1e-5, 0.1, 20), []
    for lr, (images, labels) in zip(lrs, setup.build_loader(epochs=7), strict=False):
        for group in adamw.param_groups:
            group["lr"] = lr
        adamw.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels, label_smoothing=0.3)
        loss.backward()
        adamw.step()
        losses.append(loss.item())
    np.testing.assert_allclose(curve.lrs, lrs, rtol=1e-6)
    np.testing.assert_allclose(curve.losses, losses, rtol=1e-4)


def test_without_a_terminal_there_is_a_line_now_and_then(tmp_path, capsys):
    curve = run_range_test(create_setup(small(tmp_path, lr_finder_steps=41, lr_finder_end_lr=0.01)))
    assert capsys.readouterr() == (
        "".join(
            f"  step {step}: learning rate {curve.lrs[step - 1]:.2e}, loss {curve.losses[step - 1]:.4f}\n"
            for step in (20, 40)
        ),
        "",
    )


def test_a_terminal_gets_a_bar(tmp_path, capsys, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", screen)
    run_range_test(create_setup(small(tmp_path, lr_finder_steps=41, lr_finder_end_lr=0.01)))
    assert "range test:" in screen.getvalue()
    assert capsys.readouterr().out == ""


def search(folder, monkeypatch, curve, **changes):
    monkeypatch.setattr(lr_search, "run_range_test", lambda setup: curve)
    return search_lr(create_setup(small(folder, **changes)), folder)


def test_curve_suggestions_and_plot_are_written(tmp_path, monkeypatch, capsys):
    found = search(tmp_path, monkeypatch, PARABOLA, seed=5)
    assert found == suggest(PARABOLA)
    assert names_in(tmp_path) == {"lr_finder.csv", "lr_finder.json", "lr_finder.png"}
    with (tmp_path / "lr_finder.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["lr", "loss", "smoothed_loss"]
    np.testing.assert_array_equal([float(row["lr"]) for row in rows], PARABOLA.lrs)
    np.testing.assert_array_equal([float(row["loss"]) for row in rows], PARABOLA.losses)
    np.testing.assert_array_equal([float(row["smoothed_loss"]) for row in rows], smooth(PARABOLA))
    content = json.loads((tmp_path / "lr_finder.json").read_text())
    assert list(content) == [
        *("recommended_max_lr", "recommended", "reason", "suggestions", "dataset", "config"),
        *("device", "precision", "world_size", "augment_on", "versions", "git_commit", "hardware"),
    ]
    assert (content["recommended_max_lr"], content["suggestions"]) == (found.max_lr, found.suggestions)
    assert (content["recommended"], content["config"]["seed"]) == ("flat_minimum", 5)
    lines = capsys.readouterr().out.splitlines()
    first, table, reason = lines[0], lines[1 : 1 + len(RULES)], lines[1 + len(RULES) :]
    assert first == "range test: 100 steps, learning rate 1e-06 to 1"
    assert [line.split()[0] for line in table] == list(RULES)
    assert table[-1].split()[1:] == [f"{found.max_lr:.2e}", "recommended"]
    assert " ".join(reason) == found.reason
    assert max(map(len, lines)) <= 80


def test_a_plot_that_cannot_be_drawn_is_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plots, "plot_lr_range", failing(FileNotFoundError(2, "No such file", "DejaVuSans.ttf")))
    assert search(tmp_path, monkeypatch, PARABOLA).max_lr == suggest(PARABOLA).max_lr
    assert names_in(tmp_path) == {"lr_finder.csv", "lr_finder.json"}
    assert capsys.readouterr().err.startswith("warning: a plot could not be drawn (FileNotFoundError: ")


def test_a_curve_without_a_minimum_is_written_too(tmp_path, monkeypatch, capsys):
    flat = LRCurve(PARABOLA.lrs, np.full(50, 2.3))
    assert search(tmp_path, monkeypatch, flat).max_lr is None
    content = json.loads((tmp_path / "lr_finder.json").read_text())
    assert (content["recommended_max_lr"], content["recommended"], content["suggestions"]) == (None, None, {})
    assert (tmp_path / "lr_finder.png").exists()
    assert capsys.readouterr().out.count("\n") == 1  # no table, and the reason is for the command's end


def test_after_a_first_loss_that_is_not_finite_there_is_nothing_to_write(tmp_path):
    setup = create_setup(small(tmp_path))
    with fault(1, nan):
        found = search_lr(setup, tmp_path)
    assert found.max_lr is None
    assert found.reason == "the loss diverged after 0 steps: lower --lr-finder-start-lr"
    assert not list(tmp_path.iterdir())
