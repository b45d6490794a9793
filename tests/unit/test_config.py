import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s10_resnet.config import Config
from s10_resnet.errors import InputError

always_the_same = settings(derandomize=True, deadline=None, database=None)
POSITIVE = st.floats(0, 1e300, exclude_min=True)
PATHS = st.builds(
    "{}{}".format, st.sampled_from(["", "-", "--", "/"]), st.text(st.characters(codec="utf-8"), max_size=30)
)
PATHS = PATHS.filter(lambda text: "\0" not in text).map(Path)
FIELDS = {
    "epochs": st.integers(1, 10_000),
    "batch_size": st.integers(1, 2**70),
    "max_lr": st.just("auto") | st.floats(0, 1000, exclude_min=True),
    "weight_decay": st.floats(0, 1e300),
    "ema_decay": st.floats(0, 1, exclude_max=True),
    "label_smoothing": st.floats(0, 1, exclude_max=True),
    "optimizer_betas": st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
    "peak_beta1": st.floats(0, 1, exclude_max=True),
    "bias_lr_factor": POSITIVE,
    "pct_start": st.floats(0, 1),
    "anneal": st.sampled_from(["linear", "cos"]),
    "div_factor": st.floats(1, 1e300),
    "final_div_factor": st.floats(1, 1e300),
    "logit_scale": POSITIVE,
    "norm_momentum": st.floats(0, 1, exclude_min=True),
    "dirac_init": st.booleans(),
    "whitening_init": st.booleans(),
    "crop_padding": st.integers(0, 16),
    "flip": st.sampled_from(["random", "alternating", "none"]),
    "cutout": st.integers(0, 32),
    "cutout_probability": st.floats(0, 1),
    "rotation": st.floats(0, 180),
    "color_jitter": st.floats(0, 1),
    "mix": st.sampled_from(["none", "mixup", "cutmix"]),
    "mix_alpha": st.floats(0, 100, exclude_min=True),
    "mix_from": st.floats(0, 0.4),
    "mix_until": st.floats(0.5, 1),
    "seed": st.integers(0, 2**32 - 1),
    "runs": st.integers(1, 10_000),
    "dataset": st.sampled_from(["cifar10", "synthetic", "auto"]),
    "data_dir": PATHS,
    "val_size": st.integers(0, 2**70),
    "limit": st.just(0) | st.integers(10, 2**70),
    "device": st.sampled_from(["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:9999"]),
    "precision": st.sampled_from(["auto", "fp32", "bf16", "fp16"]),
    "augment_on": st.sampled_from(["cpu", "device"]),
    "deterministic": st.booleans(),
    "workers": st.just("auto") | st.integers(0, 256),
    "finder_start_lr": st.floats(1e-300, 0.01),
    "finder_end_lr": st.floats(0.02, 1000),
    "finder_steps": st.integers(20, 100_000),
    "checkpoint_every_minutes": POSITIVE,
    "tensorboard": st.booleans(),
    "output_dir": PATHS,
    "name": st.just("") | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", fullmatch=True),
}
CONFIGS = st.fixed_dictionaries({}, optional=FIELDS).map(lambda given: Config(**given))


def test_every_field_is_drawn():
    assert [field.name for field in dataclasses.fields(Config)] == list(FIELDS)


@pytest.mark.parametrize(
    ("field", "value"), [("epochs", 0), ("epochs", 2.0), ("epochs", True), ("max_lr", "5e-3"), ("dirac_init", 1)]
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


@always_the_same
@given(CONFIGS)
def test_json_leads_back_to_the_config(config):
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("content", [None, True, 3, "settings", [], [["epochs", 3]]])
def test_settings_are_an_object(content):
    with pytest.raises(InputError, match=r"^the settings must be a JSON object$"):
        Config.from_json(content)


def test_settings_of_another_version_are_told_from_ours():
    content = Config().to_json()
    with pytest.raises(InputError, match=r"which differs in: momentum$"):
        Config.from_json({**content, "momentum": 0.9})
    del content["epochs"], content["seed"]
    with pytest.raises(InputError, match=r"^the settings of another version .* differs in: epochs, momentum, seed$"):
        Config.from_json({**content, "momentum": 0.9})
    with pytest.raises(InputError, match=r"differs in: anneal, augment_on, .*, workers$"):
        Config.from_json({})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 10_001),
        ("epochs", True),
        ("epochs", 24.0),
        ("epochs", "24"),
        ("epochs", None),
        ("epochs", [24]),
        ("batch_size", 512.5),
        ("max_lr", "5e-3"),
        ("max_lr", float("nan")),
        ("max_lr", True),
        ("max_lr", {}),
        ("weight_decay", float("inf")),
        pytest.param("weight_decay", 10**400, id="no float is so large"),
        ("label_smoothing", []),
        ("optimizer_betas", [0.9, "0.99"]),
        ("optimizer_betas", [0.9, [0.99]]),
        ("optimizer_betas", [0.9, None]),
        ("optimizer_betas", [0.9, float("nan")]),
        ("optimizer_betas", [0.9, True]),
        ("optimizer_betas", [0.9]),
        ("optimizer_betas", [0.9, 0.99, 0.999]),
        ("optimizer_betas", "99"),
        ("optimizer_betas", 0.9),
        ("optimizer_betas", None),
        ("optimizer_betas", {"0": 0.9, "1": 0.99}),
        ("anneal", ["linear"]),
        ("anneal", "LINEAR"),
        ("flip", True),
        ("dirac_init", 1),
        ("dirac_init", "true"),
        ("data_dir", 3),
        ("data_dir", ["data"]),
        ("data_dir", "a\0b"),
        ("workers", "Auto"),
        ("device", 0),
        ("device", "cuda:0\n"),
        ("name", "a/b"),
        ("name", None),
    ],
)
def test_every_value_is_checked_on_the_way_back(field, value):
    content = {**Config().to_json(), field: value}
    with pytest.raises(InputError, match=rf"^--{field.replace('_', '-')} ") as caught:
        Config.from_json(content)
    assert ": must be " in str(caught.value)


def test_the_seeds_of_runs_follow_each_other_round_the_end():
    assert Config().seeds == [0]
    assert Config(seed=5, runs=3).seeds == [5, 6, 7]
    assert Config(seed=2**32 - 2, runs=3).seeds == [2**32 - 2, 2**32 - 1, 0]


@pytest.mark.parametrize(("first", "last"), [(0.5, 0.5), (0.6, 0.5), (1.0, 1.0)])
def test_mixing_ends_after_it_began(first, last):
    with pytest.raises(InputError, match=rf"^--mix-from {first}: must be below --mix-until {last}$"):
        Config(mix_from=first, mix_until=last)


def test_the_sweep_is_checked_on_the_way_back():
    with pytest.raises(InputError, match="must be below --finder-end-lr"):
        Config.from_json({**Config().to_json(), "finder_start_lr": 1.0})
