import hashlib
import io
import os
import zipfile

import pytest
import torch

from s10_resnet.models.resnet import ResNet9
from s10_resnet.utils import serialization
from s10_resnet.utils.io import MAX_FILE_SIZE
from s10_resnet.utils.serialization import CheckpointError

SMALL = {"model": {"weight": torch.arange(6.0).view(2, 3)}, "step": 3, "classes": ["a", "b"], "betas": (0.9, 0.99)}


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "last.pt"
    serialization.save(path, SMALL)
    return path


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        serialization.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def sealed(content):
    return content + serialization._digest(content)


class Hostile:
    """Its pickle creates a file as it is read."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return exec, (f"open({str(self.witness)!r}, 'w').close()",)


def test_what_is_saved_is_loaded(tmp_path):
    network = ResNet9()
    state = {"model": network.state_dict(), "epoch": 3, "classes": ["a", "b"], "config": {"betas": [0.9, 0.99]}}
    serialization.save(tmp_path / "last.pt", state)
    loaded = serialization.load(tmp_path / "last.pt")
    assert {key: loaded[key] for key in ("epoch", "classes", "config")} == {
        key: state[key] for key in ("epoch", "classes", "config")
    }
    assert loaded["model"].keys() == state["model"].keys()
    assert all(torch.equal(loaded["model"][name], value) for name, value in state["model"].items())
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


def test_nobody_needs_this_package_to_read_it(small):
    state = torch.load(small, weights_only=True)
    weight = state["model"].pop("weight")
    assert torch.equal(weight, SMALL["model"]["weight"])
    assert state == {**SMALL, "model": {}}
    with zipfile.ZipFile(small) as archive:
        assert archive.testzip() is None
        assert archive.comment == small.read_bytes()[-71:]


def test_it_ends_in_the_digest_of_all_before(small):
    content = small.read_bytes()
    assert content[-71:].decode() == "sha256:" + hashlib.sha256(content[:-71]).hexdigest()


def test_the_file_before_is_kept(tmp_path):
    path, previous = tmp_path / "checkpoint.pt", tmp_path / "previous.pt"
    for step in range(3):
        serialization.save(path, {"step": step}, previous)
    assert (serialization.load(path), serialization.load(previous)) == ({"step": 2}, {"step": 1})
    assert len(list(tmp_path.iterdir())) == 2


def test_every_bit_counts(small):
    """No flip goes unnoticed, wherever it is."""
    content = small.read_bytes()
    with small.open("r+b", buffering=0) as file:

        def put(position, value):
            file.seek(position)
            file.write(bytes([value]))

        for position, value in enumerate(content):
            for bit in range(8):
                put(position, value ^ 1 << bit)
                assert "is damaged" in refusal(small)
            put(position, value)
    assert serialization.load(small)["step"] == 3
    for other in (content + b"\0", b"\0" + content, content + content[-71:], content * 2, content[:-1], content[:100]):
        small.write_bytes(other)
        assert "is damaged" in refusal(small)


def test_the_bytes_that_were_checked_are_the_bytes_that_are_read(small, monkeypatch):
    seal = serialization._digest

    def swap(content):
        serialization.atomic_write(small, b"something else by now")
        return seal(content)

    monkeypatch.setattr(serialization, "_digest", swap)
    assert serialization.load(small)["step"] == 3


def test_code_in_a_file_is_not_run(tmp_path):
    witness = tmp_path / "executed"
    path = tmp_path / "hostile.pt"
    torch.save({"model": Hostile(witness)}, path)
    assert "is damaged, or no checkpoint" in refusal(path)
    serialization.save(path, {"model": Hostile(witness)})  # whoever forges a file can compute a digest, too
    assert "holds something other than tensors and plain values" in refusal(path)
    assert not witness.exists()
    torch.load(path, weights_only=False)
    assert witness.exists()  # it would have


@pytest.mark.parametrize("state", [[SMALL], SMALL["model"]["weight"], None, "state"])
def test_other_things_are_no_checkpoint(tmp_path, state):
    serialization.save(tmp_path / "other.pt", state)
    assert refusal(tmp_path / "other.pt") == "is no checkpoint of this package"


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x02}q\x00.", b"PK", b"PK\x05\x06" + bytes(18)])
def test_a_seal_alone_makes_no_checkpoint(tmp_path, content):
    path = tmp_path / "other.pt"
    for other in (content, sealed(content)):
        path.write_bytes(other)
        assert refusal(path)


def test_other_formats_of_torch_are_not_ours(small):
    torch.save(SMALL, small, _use_new_zipfile_serialization=False)
    small.write_bytes(sealed(small.read_bytes()))
    assert torch.load(small, weights_only=True)["step"] == 3
    assert "was not opened" in refusal(small)


def test_it_is_loaded_onto_the_cpu_wherever_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    serialization.save(tmp_path / "last.pt", SMALL)
    assert b"cuda:0" in (tmp_path / "last.pt").read_bytes()
    assert serialization.load(tmp_path / "last.pt")["model"]["weight"].device.type == "cpu"


def test_compressed_records_are_refused(small):
    """They could unpack to any size."""
    original = zipfile.ZipFile(io.BytesIO(small.read_bytes()))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for record in original.infolist():
            archive.writestr(record.filename, original.read(record))
    body = buffer.getvalue()[:-2] + serialization.DIGEST_SIZE.to_bytes(2, "little")
    small.write_bytes(sealed(body))
    assert refusal(small).endswith("was not opened (ValueError)")


def test_shared_values_count_as_often_as_they_are_there(tmp_path):
    doubled, endless = [0], []
    for _ in range(40):
        doubled = [doubled, {"again": doubled}]
    endless.append(endless)
    for value in (doubled, endless, [[0] * 10**5] * 10**5):
        serialization.save(tmp_path / "last.pt", {"config": {"value": value}})
        with pytest.raises(CheckpointError, match=r": holds more than 200,000 values, which no checkpoint"):
            serialization.load(tmp_path / "last.pt")
    many = {"history": [[0.0] * 9] * 10_000}
    serialization.save(tmp_path / "last.pt", many)
    assert serialization.load(tmp_path / "last.pt") == many


def test_only_a_file_of_a_sensible_size_is_read(tmp_path):
    assert refusal(tmp_path / "missing.pt") == "cannot be read (No such file or directory)"
    assert refusal(tmp_path) == "cannot be read (Is a directory)"
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == "must be a file, not a pipe or a device"
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(MAX_FILE_SIZE + 1)
    assert refusal(tmp_path / "huge") == "has 1.0 GB, more than any file of this package"


def test_a_full_memory_is_not_a_damaged_file(small, monkeypatch):
    def full(*args, **options):
        raise MemoryError

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(MemoryError):
        serialization.load(small)
