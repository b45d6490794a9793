import pickle

import pytest
import torch
from torch import nn

from s10_resnet.data.synthetic import CLASSES
from s10_resnet.errors import InputError
from s10_resnet.models.pretrained import load_model
from s10_resnet.utils import serialization as checkpoint
from s10_resnet.utils.serialization import CheckpointError
from tests.unit.utils.test_serialization import Hostile


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.fixture
def content(weights):
    return checkpoint.load(weights)


def test_it_is_ready_to_use(weights, content, noise_images):
    trained = load_model(str(weights), device="cpu")
    assert (trained.classes, trained.dataset, trained.epoch) == (CLASSES, "synthetic", 3)
    assert (trained.accuracy, trained.split, trained.config) == (0.25, "test", content["config"])
    assert (str(trained.runtime.device), trained.runtime.precision) == ("cpu", "fp32")
    assert not trained.network.training
    state = trained.network.state_dict()
    assert state.keys() == content["model"].keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in content["model"].items())
    with torch.inference_mode():
        assert trained.network(torch.from_numpy(noise_images)).shape == (20, 10)


def test_the_scale_of_the_logits_and_the_split_are_the_run_s(tmp_path, weights, content, noise_images):
    images = torch.from_numpy(noise_images)
    content["val_accuracy"] = content.pop("test_accuracy")
    content["config"]["logit_scale"] *= 2
    checkpoint.save(tmp_path / "last.pt", content)
    twice, once = (load_model(path, device="cpu") for path in (tmp_path / "last.pt", weights))
    with torch.inference_mode():
        assert torch.allclose(twice.network(images), 2 * once.network(images))
    assert (twice.split, once.split) == ("val", "test")


def test_settings_that_this_version_does_not_know_do_not_matter(tmp_path, content):
    content["config"] = {"logit_scale": 0.125, "warp": 9}
    checkpoint.save(tmp_path / "last.pt", content)
    assert load_model(tmp_path / "last.pt", device="cpu").config["warp"] == 9


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "last.pt"
    assert refusal(path) == "cannot be read (No such file or directory)"
    assert refusal(tmp_path) == "cannot be read (Is a directory)"
    path.write_text("some text")
    assert "no checkpoint of this package" in refusal(path)
    witness = tmp_path / "executed"
    path.write_bytes(pickle.dumps(Hostile(witness)))
    assert "no checkpoint of this package" in refusal(path)
    torch.save(nn.Linear(2, 2).state_dict(), path)  # not sealed: of some other package
    assert "no checkpoint of this package" in refusal(path)
    checkpoint.save(path, {"model": Hostile(witness)})
    assert "something other than tensors" in refusal(path)
    assert not witness.exists()


def test_the_state_of_a_training_is_told_from_weights(tmp_path):
    checkpoint.save(tmp_path / "checkpoint.pt", {"state": {}, "config": {}})
    assert "the weights are in last.pt" in refusal(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.pop("resnet.linear.weight"),
        lambda model: model.update(extra=torch.zeros(1)),
        lambda model: model.update({"resnet.linear.weight": torch.zeros(10, 256)}),
        lambda model: model.update({"resnet.linear.weight": "text"}),
        lambda model: model.clear(),
    ],
)
def test_another_architecture(tmp_path, content, change):
    change(content["model"])
    checkpoint.save(tmp_path / "last.pt", content)
    assert refusal(tmp_path / "last.pt") == "holds the weights of another network than this package's ResNet-9"


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"classes": []},
        {"classes": ["a"] * 1001},
        {"classes": [1] * 10},
        {"classes": ["two\nlines"] * 10},
        {"classes": 10},
        {"dataset": "mnist"},
        {"dataset": None},
        {"epoch": "3"},
        {"test_accuracy": "0.9"},
        {"config": None},
        {"config": {}},
        {"config": {"logit_scale": "1"}},
        {"config": {"logit_scale": float("nan")}},
    ],
)
def test_content_that_is_not_a_run_s(tmp_path, content, change):
    checkpoint.save(tmp_path / "last.pt", {**content, **change})
    assert refusal(tmp_path / "last.pt") == "is not the weights of a run of this package, such as its last.pt"


@pytest.mark.parametrize("missing", ["model", "classes", "dataset", "epoch", "test_accuracy", "config"])
def test_content_that_is_missing(tmp_path, content, missing):
    del content[missing]
    checkpoint.save(tmp_path / "last.pt", content)
    assert "is not the weights of a run" in refusal(tmp_path / "last.pt")


def test_a_device_that_is_not_there(weights):
    with pytest.raises(InputError, match=r"^--device cuda:9999: must be one of"):
        load_model(weights, device="cuda:9999")
