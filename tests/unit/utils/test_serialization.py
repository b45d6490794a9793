import hashlib
import itertools
import os
import random
import signal
import time
import zipfile

import pytest
import torch

from s10_resnet.errors import InputError
from s10_resnet.models.resnet import ResNet9
from s10_resnet.utils import serialization as checkpoint
from s10_resnet.utils.io import write_whole
from s10_resnet.utils.serialization import CheckpointError

SMALL = {"model": {"weight": torch.arange(6.0).view(2, 3)}, "step": 3, "classes": ["a", "b"], "betas": (0.9, 0.99)}


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, SMALL)
    return path


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def sealed(content):
    return content + checkpoint._seal(content)


class Hostile:
    """Its pickle creates a file as it is read."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return exec, (f"open({str(self.witness)!r}, 'w').close()",)


def test_what_is_saved_is_loaded(tmp_path):
    network = ResNet9()
    state = {"model": network.state_dict(), "epoch": 3, "classes": ["a", "b"], "config": {"betas": [0.9, 0.99]}}
    checkpoint.save(tmp_path / "last.pt", state)
    loaded = checkpoint.load(tmp_path / "last.pt")
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
        checkpoint.save(path, {"step": step}, previous)
    assert (checkpoint.load(path), checkpoint.load(previous)) == ({"step": 2}, {"step": 1})
    assert len(list(tmp_path.iterdir())) == 2


def test_every_bit_counts(small):
    """All 14,000 of them: no flip goes unnoticed, wherever it is."""
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
    assert checkpoint.load(small)["step"] == 3


def test_every_byte_counts(small):
    content = small.read_bytes()
    for other in (content + b"\0", content + b"\n", b"\0" + content, content + content[-71:], content * 2):
        small.write_bytes(other)
        assert "is damaged" in refusal(small)
    small.write_bytes(content)
    assert checkpoint.load(small)["step"] == 3
    with small.open("r+b", buffering=0) as file:
        for length in reversed(range(len(content))):
            file.truncate(length)
            assert "is damaged" in refusal(small)


def test_the_bytes_that_were_checked_are_the_bytes_that_are_read(small, monkeypatch):
    seal = checkpoint._seal

    def swap(*parts):
        checkpoint.write_whole(small, b"something else by now")
        return seal(*parts)

    monkeypatch.setattr(checkpoint, "_seal", swap)
    assert checkpoint.load(small)["step"] == 3


def test_code_in_a_file_is_not_run(tmp_path):
    witness = tmp_path / "executed"
    path = tmp_path / "hostile.pt"
    torch.save({"model": Hostile(witness)}, path)
    assert "is damaged, or no checkpoint" in refusal(path)
    checkpoint.save(path, {"model": Hostile(witness)})  # whoever forges a file can compute a digest, too
    assert "holds something other than tensors and plain values" in refusal(path)
    assert not witness.exists()
    torch.load(path, weights_only=False)
    assert witness.exists()  # it would have


@pytest.mark.parametrize("state", [[SMALL], SMALL["model"]["weight"], None, "state"])
def test_other_things_are_no_checkpoint(tmp_path, state):
    checkpoint.save(tmp_path / "other.pt", state)
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


def test_a_file_that_cannot_be_read(tmp_path):
    assert refusal(tmp_path / "missing.pt") == "cannot be read (No such file or directory)"
    assert refusal(tmp_path) == "cannot be read (Is a directory)"
    assert issubclass(CheckpointError, InputError)


def test_it_is_loaded_onto_the_cpu_wherever_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    checkpoint.save(tmp_path / "last.pt", SMALL)
    assert b"cuda:0" in (tmp_path / "last.pt").read_bytes()
    assert checkpoint.load(tmp_path / "last.pt")["model"]["weight"].device.type == "cpu"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_process_killed_while_it_writes_leaves_a_whole_file(tmp_path):
    """The fast form of what ``make stress`` does to the scripts.

    The child only writes bytes: torch would wait for its threads, which do not come along when a process forks.
    """
    draws, landed = random.Random(), 0
    path, previous = tmp_path / "checkpoint.pt", tmp_path / "checkpoint.previous.pt"
    contents = []
    for step in range(2):
        checkpoint.save(path, {"step": step, "weights": torch.full((2_000_000,), float(step))})
        contents.append(path.read_bytes())
    for _ in range(20):
        writer = os.fork()
        if not writer:
            try:
                for content in itertools.cycle(contents):
                    write_whole(path, content, previous)
            finally:
                os._exit(1)
        try:
            assert eventually(lambda: list(tmp_path.glob(".*.tmp")))
            time.sleep(draws.uniform(0, 0.01))
        finally:
            os.kill(writer, signal.SIGKILL)
            exit_code = os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1])
        assert exit_code == -signal.SIGKILL
        landed += bool(list(tmp_path.glob(".*.tmp")))
        checkpoint.load(path)
        for left in tmp_path.glob(".*.tmp"):
            left.unlink()
    assert landed  # in the middle of a write, not between two


def eventually(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.0005)
    return met
