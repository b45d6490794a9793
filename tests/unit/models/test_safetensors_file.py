import json
import struct
import sys

import pytest
import torch

from s10_resnet.errors import InputError
from s10_resnet.models import resnet as model
from s10_resnet.models import safetensors_file as sharing
from s10_resnet.models.pretrained import load_model
from s10_resnet.utils import serialization as checkpoint
from s10_resnet.utils.serialization import CheckpointError
from tests.runs import small

library = pytest.importorskip("safetensors.torch")

SMALL = {
    "model": {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(3)},
    "epoch": 3,
    "classes": ["ä", "b"],
    "config": {"betas": [0.9, 0.99], "name": 'a "quoted"\nword'},
}


@pytest.fixture
def path(tmp_path):
    sharing.write(tmp_path / "last.safetensors", SMALL)
    return tmp_path / "last.safetensors"


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        sharing.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def headed(header, tensors=b""):
    """A file of this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def test_what_is_written_is_read(path):
    content = sharing.read(path)
    weights = content.pop("model")
    assert content == {key: value for key, value in SMALL.items() if key != "model"}
    assert weights.keys() == SMALL["model"].keys()
    for name, tensor in SMALL["model"].items():
        assert weights[name].dtype == tensor.dtype
        assert torch.equal(weights[name], tensor)


def test_nobody_needs_this_package_to_read_it(path):
    safetensors = pytest.importorskip("safetensors")
    weights = library.load_file(path)
    assert torch.equal(weights["weight"], SMALL["model"]["weight"])
    with safetensors.safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["classes"]) == SMALL["classes"]
        assert file.metadata()["format"] == "pt"  # other programs look for it


def test_weights_in_any_memory_order_are_the_same_weights(tmp_path):
    weight = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    for number, tensor in enumerate((weight, weight.to(memory_format=torch.channels_last))):
        sharing.write(tmp_path / f"{number}.safetensors", {"model": {"weight": tensor}})
        assert torch.equal(sharing.read(tmp_path / f"{number}.safetensors")["model"]["weight"], weight)


def test_a_shared_network_is_the_network(tmp_path):
    network = model.build_network((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    config = small(tmp_path).to_json()
    about = {"epoch": 2, "val_accuracy": 0.5, "dataset": "synthetic", "classes": list("abcdefghij"), "config": config}
    sharing.write(tmp_path / "best.safetensors", {"model": network.state_dict(), **about})
    checkpoint.save(tmp_path / "best.pt", {"model": network.state_dict(), **about})
    shared, own = (load_model(tmp_path / f"best.{suffix}", "cpu") for suffix in ("safetensors", "pt"))
    for name, tensor in network.state_dict().items():
        assert torch.equal(shared.network.state_dict()[name], tensor)
        assert shared.network.state_dict()[name].stride() == own.network.state_dict()[name].stride()
    for name in ("classes", "dataset", "epoch", "accuracy", "split", "config"):
        assert getattr(shared, name) == getattr(own, name)


def test_every_bit_counts(path):
    content = path.read_bytes()
    with path.open("r+b", buffering=0) as file:

        def put(position, value):
            file.seek(position)
            file.write(bytes([value]))

        for position, value in enumerate(content):
            for bit in range(8):
                put(position, value ^ 1 << bit)
                assert "is damaged" in refusal(path)
            put(position, value)
    assert sharing.read(path)["epoch"] == 3


def test_every_byte_counts(path):
    content = path.read_bytes()
    for other in (content + b"\0", b"\0" + content, content * 2, *(content[:end] for end in range(len(content)))):
        path.write_bytes(other)
        assert "is damaged" in refusal(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"A text that is longer than the eight bytes of a length.\n" * 100,
        b"PK\x03\x04" + bytes(100),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        struct.pack("<Q", 100_000_001) + b"{}",
        headed(b"[" * 100_000),
        headed(b'{"__metadata__":' + b'{"a":' * 100_000),
        headed({}),
        headed({"__metadata__": None}),
        headed({"__metadata__": {}}),
        headed({"__metadata__": {"sha256": "0" * 64}}),
        headed({"__metadata__": {"sha256": 7}}),
        headed({"weight": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, bytes(4)),
        headed({"weight": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}),
        headed({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**60]}}, bytes(4)),
        headed({"weight": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, bytes(1)),
        headed({"weight": {"dtype": "code", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    ],
    ids=lambda content: repr(content[:24]),
)
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    assert refusal(path) == "is damaged, or no safetensors file of this package"


def test_a_file_of_another_program_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    library.save_file(SMALL["model"], path)
    assert "no safetensors file of this package" in refusal(path)
    library.save_file(SMALL["model"], path, metadata={"format": "pt", "epoch": "3"})
    assert "no safetensors file of this package" in refusal(path)


def test_text_that_is_no_json_is_refused_even_under_a_seal(tmp_path):
    path = tmp_path / "other.safetensors"
    for value in ("", "{", "[" * 100_000, "9" * 10_000):
        text = {"format": "pt", "epoch": value}
        library.save_file(SMALL["model"], path, metadata={**text, "sha256": sharing._digest(SMALL["model"], text)})
        assert "is damaged" in refusal(path)


def test_text_cannot_pass_for_the_weights(tmp_path):
    path = tmp_path / "other.safetensors"
    text = {"model": json.dumps("none")}
    library.save_file(SMALL["model"], path, metadata={**text, "sha256": sharing._digest(SMALL["model"], text)})
    assert torch.equal(sharing.read(path)["model"]["weight"], SMALL["model"]["weight"])


def test_the_bytes_that_were_checked_are_the_bytes_that_are_read(path, monkeypatch):
    read_bytes = type(path).read_bytes

    def swap(path):
        content = read_bytes(path)
        path.write_bytes(b"something else by now")
        return content

    monkeypatch.setattr(type(path), "read_bytes", swap)
    assert sharing.read(path)["epoch"] == 3


def test_a_file_that_cannot_be_read(tmp_path):
    assert refusal(tmp_path / "missing.safetensors") == "cannot be read (No such file or directory)"
    assert refusal(tmp_path) == "cannot be read (Is a directory)"


def test_a_missing_library_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for call, flag in (
        (lambda: sharing.read(path), str(path)),
        (lambda: sharing.write(path, SMALL), "--format safetensors"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == f"{flag}: needs safetensors, which is not installed: pip install '.[export]'"
