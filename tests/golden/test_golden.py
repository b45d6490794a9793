import json

import pytest
import torch

from tests.golden.compare import first_difference
from tests.golden.names import spelled
from tests.golden.results import (
    Result,
    ScenarioError,
    read_evaluation,
    read_lr_finder,
    read_predictions,
    read_sweep,
    read_training,
)


def leave_run(folder, split="test", model="model", rows=("1,2.5,0.1,2.25,0.001,9.75", "2,2.0,0.2,1.5,1e-08,8.5")):
    folder.mkdir()
    head = f"epoch,train_loss,train_accuracy,{split}_loss,lr,train_seconds"
    (folder / "history.csv").write_text("\n".join([head, *rows]) + "\n")
    generator = torch.Generator().manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    adam = torch.optim.Adam(network.parameters())
    network(torch.ones(4, 3)).square().sum().backward()
    adam.step()
    torch.save({model: network.state_dict(), "epoch": 2}, folder / "last.pt")
    torch.save({"state": {"model": network.state_dict(), "optimizer": adam.state_dict()}}, folder / "checkpoint.pt")
    return read_training(folder)


@pytest.fixture
def run(tmp_path):
    return leave_run(tmp_path / "run")


def test_a_run_equals_its_repetition_with_other_names_and_times(run, tmp_path):
    rows = ("1.0,2.50,0.1,2.25,0.001,77", "2.0,2.0,0.2,1.5,1e-8,66")
    other = leave_run(tmp_path / "other", split="eval", model="weights", rows=rows)
    assert first_difference(run, other) == ""
    assert len(run.numbers) == 10
    assert {name: len(group) for name, group in run.tensors.items()} == {"weights": 7, "moments": 12}


@pytest.mark.parametrize("group", ["weights", "moments"])
def test_one_bit_of_a_tensor_shows(run, group):
    changed = [tensor.clone() for tensor in run.tensors[group]]
    place = next(i for i, tensor in enumerate(changed) if tensor.numel() > 1)
    changed[place].view(torch.int32).view(-1)[1] ^= 1
    text = first_difference(run, Result(run.numbers, {**run.tensors, group: changed}))
    assert text.startswith(f"{group}[{place}] float32 ")
    assert "element 1: " in text


def test_bits_count_not_values():
    zero, nan = (Result({"a": "1.0"}, {"weights": [torch.tensor(value)]}) for value in (0.0, torch.nan))
    assert first_difference(nan, nan) == ""
    minus = Result({"a": "1.0"}, {"weights": [torch.tensor(-0.0)]})
    assert first_difference(zero, minus) == "weights[0] float32 [], element 0: 0.0 != -0.0"


def test_a_missing_or_reshaped_tensor_shows(run):
    weights = run.tensors["weights"]
    fewer = Result(run.numbers, {**run.tensors, "weights": weights[:-1]})
    assert first_difference(run, fewer) == "weights: 7 tensors != 6 tensors"
    assert first_difference(run, Result(run.numbers, {"weights": weights})) == "moments: 12 tensors != 0 tensors"
    turned = Result(run.numbers, {**run.tensors, "weights": [weights[0].T, *weights[1:]]})
    assert first_difference(run, turned) == "weights[0]: float32 [2, 3] != float32 [3, 2]"
    double = Result(run.numbers, {**run.tensors, "weights": [weights[0].double(), *weights[1:]]})
    assert first_difference(run, double) == "weights[0]: float32 [2, 3] != float64 [2, 3]"


def test_the_last_digit_of_a_number_and_a_missing_one_show(run):
    name = "epoch 1.0 eval_loss"
    changed = Result({**run.numbers, name: "2.2500000000000004"}, run.tensors)
    assert first_difference(run, changed) == f"{name}: 2.25 != 2.2500000000000004"
    fewer = Result({key: value for key, value in run.numbers.items() if key != name}, run.tensors)
    assert first_difference(run, fewer) == f"{name}: 2.25 != missing"
    assert first_difference(fewer, run) == f"{name}: missing != 2.25"


def test_nothing_compared_is_no_proof():
    assert first_difference(Result({}), Result({})) == "no numbers to compare"
    empty = Result({"a": "1.0"}, {"weights": []})
    assert first_difference(empty, empty) == "no weights to compare"


def test_a_run_without_history_cannot_be_compared(tmp_path):
    with pytest.raises(ScenarioError, match="holds 0 CSV files"):
        leave_run(tmp_path / "run", rows=())


def test_a_curve_is_read_under_old_and_new_columns(tmp_path):
    for name in ("lr", "learning_rate"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lr_finder.csv").write_text(f"loss,{name},smoothed_loss\n2.5,1e-06,2.4\n")
    old, new = (read_lr_finder(tmp_path / name) for name in ("lr", "learning_rate"))
    assert old.numbers == {"step 1 loss": "2.5", "step 1 lr": "1e-06", "step 1 smoothed_loss": "2.4"}
    assert first_difference(old, new) == ""


def test_a_sweep_is_read_under_old_and_new_keys_and_in_any_order(tmp_path):
    old = [{"variant": "as given", "seed": seed, "max_lr": 0.005, "accuracy_six": seed / 7} for seed in (0, 1)]
    new = [
        {
            "name": "baseline",
            "config": {"max_lr": 0.005},
            "seed": row["seed"],
            "accuracy_tta_flip_shift": row["seed"] / 7,
        }
        for row in reversed(old)
    ]
    for name, content in (("old", {"settings": {"seed": 0}, "runs": old}), ("new", {"results": {"trainings": new}})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sweep.json").write_text(json.dumps(content))
    for row in new:
        folder = tmp_path / "folders" / str(row["seed"])
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(row))
    expected = read_sweep(tmp_path / "old")
    assert len(expected.numbers) == 2
    assert first_difference(expected, read_sweep(tmp_path / "new")) == ""
    assert first_difference(expected, read_sweep(tmp_path / "folders")) == ""


def test_an_evaluation_and_predictions_are_read():
    content = {"accuracy": 0.5, "loss": 2.0, "per_class": {"cat": {"images": 2, "accuracy": 0.5}}, "unreadable": []}
    assert read_evaluation(content).numbers == {"accuracy": "0.5", "loss": "2.0", "class 0 accuracy": "0.5"}
    rows = [{"image": "a.png", "predictions": [{"class": "cat", "probability": 0.25}]}]
    assert read_predictions(rows).numbers == {"probability 0 cat": "0.25"}


def test_words_are_spelled_as_the_help_spells_them():
    old, new = "  --optimizer-betas BETAS  (none, flip, six)", "  --betas BETAS  (none, flip, flip_shift)"
    assert [spelled(word, old) for word in ("--optimizer-betas", "six", "7")] == ["--optimizer-betas", "six", "7"]
    assert [spelled(word, new) for word in ("--optimizer-betas", "six", "7")] == ["--betas", "flip_shift", "7"]
