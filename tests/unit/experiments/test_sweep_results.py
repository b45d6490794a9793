import json
import math
import re

import pytest

from s10_resnet.config import Config
from s10_resnet.experiments import statistics as spread
from s10_resnet.experiments import sweep_results
from s10_resnet.experiments.variants import AS_GIVEN, Variant
from s10_resnet.options import Sweep
from s10_resnet.training import session
from tests.runs import small

pytestmark = pytest.mark.usefixtures("small_parts")

BASE = Variant(AS_GIVEN, Config())
OTHER = Variant("max-lr=1e-2", Config(max_lr=1e-2))


def row(variant, seed, accuracy, failed=""):
    return sweep_results.Row(
        variant=variant.label,
        seed=seed,
        failed=failed,
        max_lr=variant.config.max_lr,
        train_accuracy=0.5,
        accuracy_none=accuracy,
        accuracy_flip=accuracy + 0.01,
        accuracy_six=accuracy + 0.02,
        train_seconds=2.0,
    )


@pytest.fixture
def content(tmp_path):
    def of(*rows):
        run = session.begin(small(tmp_path))
        return sweep_results.content(Sweep(variants=(OTHER.label,)), run, [BASE, OTHER], rows)

    return of


def table(content, tmp_path, capsys):
    sweep_results.report(tmp_path, content, "")
    return [re.split(r" {2,}", line) for line in capsys.readouterr().out.splitlines()]


def test_each_variant_beside_the_recipe_as_given(content, tmp_path, capsys):
    rows = [row(BASE, 0, 0.90), row(BASE, 1, 0.91), row(OTHER, 0, 0.93), row(OTHER, 1, 0.94)]
    told = content(*rows)
    first, second = told["variants"]
    assert (first["changes"], second["changes"]) == ({}, {"max_lr": 0.01})
    assert first["statistics"]["six"] == spread.describe([0.92, 0.93])
    assert second["difference"] == spread.difference([0.93, 0.94], [0.90, 0.91])
    lines = table(told, tmp_path, capsys)
    assert lines[2] == ["accuracy after the last epoch in %, mean ± standard deviation, synthetic, 12 test images"]
    assert lines[-2] == ["as given", "2", "90.50 ± 0.71", "91.50 ± 0.71", "92.50 ± 0.71", "-", "0"]
    low, high = second["difference"]["interval"]
    assert lines[-1][-2:] == [f"+3.00 ({100 * low:+.2f} to {100 * high:+.2f})", "0"]


def test_what_failed_is_counted_and_not_averaged(content, tmp_path, capsys):
    broken = row(OTHER, 1, math.nan, failed="epoch 1, step 3: no number")
    told = content(row(BASE, 0, 0.90), row(OTHER, 0, 0.80), broken)
    assert told["variants"][1]["statistics"]["none"] == spread.describe([0.80])
    assert told["variants"][1]["failed"] == 1
    assert told["runs"][2]["accuracy_none"] is None
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert table(told, tmp_path, capsys)[-1][-1] == "1"
    assert sweep_results.outcome(broken) == "failed: epoch 1, step 3: no number"


def test_without_the_recipe_as_given_there_is_nothing_to_compare_with(content, tmp_path, capsys):
    told = content(row(OTHER, 0, 0.80))
    assert [variant["difference"] for variant in told["variants"]] == [None, None]
    assert table(told, tmp_path, capsys)[-2] == ["as given", *"-----", "0"]


def test_rows_come_back_from_json(content):
    rows = [row(BASE, 0, 0.90), row(OTHER, 1, math.nan, failed="why")]
    saved = json.loads(json.dumps(content(*rows)))["runs"]
    assert sweep_results.revived(saved[0]) == rows[0]
    again = sweep_results.revived(saved[1])
    assert again["failed"] == "why"
    assert math.isnan(again["accuracy_six"])


@pytest.mark.parametrize("change", [{"seed": "0"}, {"accuracy_six": None}, {"max_lr": 1}, {"more": 0.0}])
def test_anything_else_is_no_row(change):
    with pytest.raises(TypeError):
        sweep_results.revived({**row(BASE, 0, 0.9), **change})
    with pytest.raises(TypeError):
        sweep_results.revived([change])
