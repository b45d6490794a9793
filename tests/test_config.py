import dataclasses
import json
from pathlib import Path

import pytest

from s10_resnet.config import Config
from s10_resnet.errors import InputError


@pytest.mark.parametrize(
    ("field", "value"), [("epochs", 0), ("epochs", 2.0), ("epochs", True), ("max_lr", "5e-3"), ("flip", 1)]
)
def test_python_callers_are_checked_too(field, value):
    with pytest.raises(InputError, match=rf"^--{field.replace('_', '-')} {value}: must be "):
        Config(**{field: value})


def test_the_sweep_of_the_finder_rises():
    with pytest.raises(InputError, match=r"--finder-start-lr 1\.0: must be below --finder-end-lr 0\.1"):
        Config(finder_start_lr=1.0, finder_end_lr=0.1)


def test_defaults_are_the_recipe_of_the_readme():
    config = Config()
    assert (config.epochs, config.batch_size, config.max_lr, config.dataset) == (24, 512, 5e-3, "cifar10")


def test_the_data_folder_can_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("S10_DATA_DIR", "/from/the/environment")
    assert Config().data_dir == Path("/from/the/environment")
    monkeypatch.delenv("S10_DATA_DIR")
    assert Config().data_dir == Path("data")


def test_json_holds_every_field():
    content = Config(data_dir=Path("x")).to_json()
    assert set(content) == {field.name for field in dataclasses.fields(Config)}
    assert content["data_dir"] == "x"
    assert content["optimizer_betas"] == [0.9, 0.99]
    assert json.loads(json.dumps(content)) == content
