import json
import os
import pickle
import struct
import sys

import pytest
import torch
from torch import nn

from s10_resnet.config import TrainConfig
from s10_resnet.data.synthetic import CLASSES
from s10_resnet.errors import InputError
from s10_resnet.models import resnet
from s10_resnet.models.pretrained import load_model
from s10_resnet.utils import serialization
from s10_resnet.utils.serialization import CheckpointError
from tests.runs import small_network
from tests.unit.utils.test_serialization import Hostile

INFO = {
    "epoch": 3,
    "eval_accuracy": 0.25,
    "eval_split": "val",
    "dataset": "synthetic",
    "classes": list(CLASSES),
    "config": {"logit_scale": 0.125, "betas": [0.9, 0.99], "name": "run"},
}
FOREIGN = "is not a weights file of this package, such as a run's last.pt"
OTHER_NETWORK = "holds the weights of another network than this package's ResNet-9"
DAMAGED = "is damaged, or not a safetensors file of this package"


@pytest.fixture
def small_content(monkeypatch):
    """The content of a weights file of a small network, which takes the place of ResNet-9."""
    monkeypatch.setattr(resnet, "build_model", small_network)
    return {"model": small_network((0.4,) * 3, (0.2,) * 3, num_classes=10).state_dict(), **INFO}


def saved(folder, content):
    serialization.save(folder / "last.pt", content)
    return folder / "last.pt"


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        load_model(path, "cpu")
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_file_and_its_folder(weights, noise_images):
    content = serialization.load(weights)
    images = torch.from_numpy(noise_images)
    for path in (weights, str(weights), weights.parent, str(weights.parent)):
        model = load_model(path, device="cpu")
        assert (model.classes, model.dataset, model.epoch) == (CLASSES, "synthetic", 3)
        assert (model.eval_accuracy, model.eval_split, model.config) == (0.25, "test", content["config"])
        assert (str(model.runtime.device), model.runtime.precision) == ("cpu", "fp32")
        assert isinstance(model, nn.Module)
        assert not any(module.training for module in model.modules())
        state = model.network.state_dict()
        assert state.keys() == content["model"].keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in content["model"].items())
    with torch.inference_mode():
        assert torch.equal(model(images), model.network(images))
    assert model.to("meta").runtime.device == torch.device("meta")


def test_images_are_pixels(tmp_path, small_content):
    model = load_model(saved(tmp_path, small_content))
    for dtype in (torch.float32, torch.int64):
        with pytest.raises(InputError, match=r"^images: must be uint8 pixels from 0 to 255, not torch\."):
            model(torch.zeros(1, 32, 32, 3, dtype=dtype))


def test_the_precision_is_that_of_the_forward_pass(tmp_path, small_content, noise_images):
    path, images = saved(tmp_path, small_content), torch.from_numpy(noise_images)
    low, full = (load_model(path, "cpu", precision)(images) for precision in ("bf16", "fp32"))
    assert low.dtype == full.dtype == torch.float32
    assert not torch.equal(low, full)
    assert torch.allclose(low, full, atol=0.05)


def test_the_logit_scale_is_that_of_the_training(tmp_path, weights, noise_images):
    content = serialization.load(weights)
    content["config"]["logit_scale"] *= 2
    images = torch.from_numpy(noise_images[:2])
    with torch.inference_mode():
        twice, once = (load_model(path, "cpu")(images) for path in (saved(tmp_path, content), weights))
    assert torch.allclose(twice, 2 * once)


@pytest.mark.parametrize("split", ["test", "val"])
def test_files_of_previous_versions(tmp_path, small_content, split):
    del small_content["eval_split"]
    small_content[f"{split}_accuracy"] = small_content.pop("eval_accuracy")
    small_content["config"] = {
        "logit_scale": 0.125,
        "limit": 500,
        "optimizer_betas": [0.9, 0.99],
        "anneal": "cos",
        "cutout": 6,
        "finder_steps": 50,
        "flip": True,
        "mix": "cutmix",
        "norm_momentum": 0.3,
        "ema_decay": 0.99,
        "runs": 3,
        "warp": 9,
    }
    model = load_model(saved(tmp_path, small_content), "cpu")
    assert (model.eval_accuracy, model.eval_split) == (0.25, split)
    assert model.config == {
        "logit_scale": 0.125,
        "max_train_samples": 500,
        "betas": [0.9, 0.99],
        "anneal_strategy": "cos",
        "cutout_size": 6,
        "lr_finder_steps": 50,
        "flip": "random",
        "warp": 9,  # of a version to come
    }
    del model.config["warp"]
    assert TrainConfig.from_json(model.config).betas == (0.9, 0.99)


def test_settings_of_a_run_in_a_folder_that_is_not_unicode(tmp_path, small_content):
    small_content["config"]["output_dir"] = "outputs\udcff"
    assert load_model(saved(tmp_path, small_content), "cpu").config["output_dir"] == "outputs\udcff"


def test_nothing_else_of_the_process_changes(tmp_path, small_content, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    before = torch.get_rng_state()
    load_model(saved(tmp_path, small_content), "cpu")
    assert torch.backends.cudnn.benchmark is False
    assert not torch.distributed.is_initialized()
    assert torch.equal(torch.get_rng_state(), before)


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "last.pt"
    assert refusal(path) == "cannot be read (No such file or directory)"
    assert refusal(tmp_path) == "must be a run folder with a last.pt, or a file of weights"
    path.write_text("some text")
    assert "no checkpoint of this package" in refusal(path)
    witness = tmp_path / "executed"
    path.write_bytes(pickle.dumps(Hostile(witness)))
    assert "no checkpoint of this package" in refusal(path)
    torch.save(nn.Linear(2, 2).state_dict(), path)  # without a digest: of some other package
    assert "no checkpoint of this package" in refusal(path)
    serialization.save(path, {"model": Hostile(witness)})
    assert "something other than tensors" in refusal(path)
    assert not witness.exists()
    serialization.save(path, {"state": {}, "config": {}})
    assert "the weights are in last.pt" in refusal(path)


@pytest.mark.parametrize("name", ["last.pt", "last.safetensors"])
def test_a_pipe_is_not_opened_and_a_huge_file_not_read(tmp_path, name):
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors.torch")
    path = tmp_path / name
    os.mkfifo(path)
    assert refusal(path) == "must be a file, not a pipe or a device"
    path.unlink()
    with path.open("wb") as file:
        file.truncate(2 * 10**9)
    assert refusal(path) == "has 2.0 GB, more than any file of this package"


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.pop("resnet.linear.weight"),
        lambda model: model.update(extra=torch.zeros(1)),
        lambda model: model.update({"resnet.linear.weight": torch.zeros(10, 256)}),
        lambda model: model.update({"resnet.linear.weight": torch.zeros(10, 512, dtype=torch.complex64)}),
        lambda model: model.update({"resnet.linear.weight": torch.zeros(10, 512).to_sparse()}),
        lambda model: model.update({"resnet.linear.weight": torch.zeros(10, 512, device="meta")}),
        lambda model: model.update({"resnet.linear.weight": "text"}),
        lambda model: model.clear(),
    ],
)
def test_another_network(tmp_path, small_content, change):
    change(small_content["model"])
    assert refusal(saved(tmp_path, small_content)) in (OTHER_NETWORK, FOREIGN)


@pytest.mark.parametrize("name", ["resnet.linear.weight", "resnet.norm.running_var", "normalize.std"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(tmp_path, small_content, name, value):
    small_content["model"][name].view(-1)[-1] = value
    assert refusal(saved(tmp_path, small_content)) == "holds weights that are not finite numbers"


def endless():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"classes": []},
        {"classes": [str(number) for number in range(1001)]},
        {"classes": [1] * 10},
        {"classes": ["\x1b[2J"]},
        {"dataset": "mnist"},
        {"epoch": True},
        {"epoch": -1},
        {"epoch": 10**400},
        {"eval_accuracy": 1.5},
        {"eval_split": "train"},
        {"config": None},
        {"config": {"logit_scale": "1"}},
        *({"config": {"logit_scale": value}} for value in (0, -1.0, float("nan"), float("inf"), 1e39, 10**400)),
        *({"config": {"logit_scale": 1.0, "more": value}} for value in (endless(), 10**400, {}, [[]])),
        {"config": {"logit_scale": 1.0, "more": torch.zeros(2)}},
        {"config": {"logit_scale": 1.0, "more": float("nan")}},
        {"config": {"logit_scale": 1.0, "more": "long" * 2000}},
        {"config": {"logit_scale": 1.0, "more": [0] * 1001}},
        {"config": {"logit_scale": 1.0, 1: 2}},
        {"config": {"logit_scale": 1.0, "val_size": "30"}},
    ],
    ids=lambda change: "-".join(change),
)
def test_content_of_other_types_and_ranges(tmp_path, change):
    refused = refusal(saved(tmp_path, {"model": {}, **INFO, **change}))
    assert refused in (FOREIGN, "holds more than 200,000 values, which no checkpoint of this package does")


@pytest.mark.parametrize("missing", ["model", "classes", "dataset", "epoch", "eval_accuracy", "eval_split", "config"])
def test_content_that_is_missing(tmp_path, missing):
    content = {"model": {}, **INFO}
    assert refusal(saved(tmp_path, content)) == OTHER_NETWORK  # the rest is as it should be
    del content[missing]
    assert refusal(saved(tmp_path, content)) == FOREIGN


# Safetensors: what the writer writes is read in test_export.py.


def headed(header, tensors=b""):
    """A safetensors file of this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"A text that is longer than the eight bytes of a length.\n" * 100,
        struct.pack("<Q", 2**64 - 1) + b"{}",
        headed(b"[" * 100_000),
        headed({"__metadata__": None}),
        headed({"__metadata__": {"epoch": 7}}),
        *(headed({"__metadata__": {"epoch": text}}) for text in ("", "{", "[" * 100_000, "9" * 10_000)),
        headed({"weight": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, bytes(4)),
        headed({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**60]}}, bytes(4)),
    ],
    ids=lambda content: repr(content[:24]),
)
def test_foreign_safetensors(tmp_path, content):
    pytest.importorskip("safetensors.torch")
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    assert refusal(path) in (DAMAGED, FOREIGN)


def test_safetensors_of_other_programs_and_of_previous_versions(tmp_path, small_content):
    library = pytest.importorskip("safetensors.torch")
    path = tmp_path / "last.safetensors"
    tensors = {name: tensor.contiguous() for name, tensor in small_content.pop("model").items()}
    text = {key: json.dumps(value) for key, value in small_content.items()}
    library.save_file(tensors, path)
    assert refusal(path) == FOREIGN
    library.save_file(tensors, path, metadata={**text, "classes": "none"})
    assert refusal(path) == DAMAGED
    library.save_file(tensors, path, metadata={**text, "epoch": "1e999"})
    assert refusal(path) == FOREIGN
    library.save_file(tensors, path, metadata={**text, "model": '"text"', "format": "pt", "sha256": "0" * 64})
    model = load_model(path, "cpu")
    assert (model.epoch, model.eval_split) == (3, "val")
    assert torch.equal(model.network.state_dict()["resnet.linear.weight"], tensors["resnet.linear.weight"])


def test_a_full_memory_is_not_a_damaged_file(tmp_path, monkeypatch):
    library = pytest.importorskip("safetensors.torch")

    def full(content):
        raise MemoryError

    monkeypatch.setattr(library, "load", full)
    path = tmp_path / "last.safetensors"
    path.touch()
    with pytest.raises(MemoryError):
        load_model(path)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    path = tmp_path / "last.safetensors"
    with pytest.raises(InputError) as caught:
        load_model(path)
    assert str(caught.value) == f"{path}: needs safetensors, which is not installed: pip install '.[export]'"
