import pickle

import pytest
import torch

from s10_resnet import checkpoint
from s10_resnet.model import ResNet9


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


def test_code_in_a_file_is_not_run(tmp_path):
    witness = tmp_path / "executed"

    class Hostile:
        def __reduce__(self):
            return exec, (f"open({str(witness)!r}, 'w').close()",)

    torch.save({"model": Hostile()}, tmp_path / "hostile.pt")
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load(tmp_path / "hostile.pt")
    assert not witness.exists()
