import json
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from s10_resnet import cli, config
from s10_resnet.config import (
    REMOVED,
    RENAMED,
    BenchmarkConfig,
    CompareConfig,
    EvaluateConfig,
    ExportConfig,
    FindLRConfig,
    PredictConfig,
    SweepConfig,
    TrainConfig,
    describe_allowed,
    printable,
)
from s10_resnet.errors import InputError

ROOT = Path(__file__).parents[2]
# What version 0.1 wrote into every config.json: other names, other defaults, and settings that are gone.
VERSION_0_1 = {
    "weight_decay": 0.3,
    "label_smoothing": 0.1,
    "flip": "random",
    "optimizer_betas": [0.9, 0.99],
    "peak_beta1": 0.0,
    "bias_lr_factor": 1.0,
    "anneal": "linear",
    "norm_momentum": 0.1,
    "cutout": 8,
    "cutout_probability": 1.0,
    "rotation": 0.0,
    "mix": "none",
    "mix_alpha": 0.2,
    "mix_from": 0.0,
    "mix_until": 1.0,
    "runs": 1,
    "ema_decay": 0.0,
    "color_jitter": 0.0,
    "limit": 0,
    "augment_on": "cpu",
    "finder_start_lr": 1e-06,
    "finder_end_lr": 1.0,
    "finder_steps": 100,
}
COMMANDS = [command.settings for command in cli.COMMANDS.values()]
REQUIRED = {
    EvaluateConfig: {"checkpoint": "a.pt"},
    PredictConfig: {"checkpoint": "a.pt", "images": ["b.png"]},
    CompareConfig: {"runs": ["a", "b"]},
    ExportConfig: {"checkpoint": "a.pt"},
}
always_the_same = settings(derandomize=True, deadline=None, database=None)

POSITIVE = st.floats(0, 1e300, exclude_min=True)
PATHS = st.builds(
    "{}{}".format, st.sampled_from(["", "-", "--", "/"]), st.text(st.characters(codec="utf-8"), max_size=30)
)
PATHS = PATHS.filter(lambda text: "\0" not in text).map(Path)
SHARE = st.floats(0, 1)
BELOW_1 = st.floats(0, 1, exclude_max=True)
FIELDS = {
    "epochs": st.integers(1, 10_000),
    "max_lr": st.just("auto") | st.floats(0, 1000, exclude_min=True),
    "pct_start": SHARE,
    "anneal_strategy": st.sampled_from(["linear", "cos"]),
    "div_factor": st.floats(1, 1e300),
    "final_div_factor": st.floats(1, 1e300),
    "batch_size": st.integers(1, 2**70),
    "weight_decay": st.floats(0, 1e300),
    "label_smoothing": BELOW_1,
    "betas": st.tuples(BELOW_1, BELOW_1),
    "logit_scale": POSITIVE,
    "dirac_init": st.booleans(),
    "whitening_init": st.booleans(),
    "crop_padding": st.integers(0, 16),
    "flip": st.sampled_from(["random", "alternating", "none"]),
    "cutout_size": st.integers(0, 32),
    "dataset": st.sampled_from(["cifar10", "synthetic", "auto"]),
    "data_dir": PATHS,
    "val_size": st.integers(0, 2**70),
    "max_train_samples": st.just(0) | st.integers(10, 2**70),
    "seed": st.integers(0, 2**32 - 1),
    "device": st.sampled_from(["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:9999"]),
    "precision": st.sampled_from(["auto", "fp32", "bf16", "fp16"]),
    "augment_on": st.sampled_from(["auto", "cpu", "device"]),
    "workers": st.just("auto") | st.integers(0, 256),
    "deterministic": st.booleans(),
    "lr_finder_start_lr": st.floats(1e-300, 0.01),
    "lr_finder_end_lr": st.floats(0.02, 1000),
    "lr_finder_steps": st.integers(20, 100_000),
    "output_dir": PATHS,
    "name": st.just("") | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", fullmatch=True),
    "checkpoint_every_minutes": POSITIVE,
    "tensorboard": st.booleans(),
}
CONFIGS = st.fixed_dictionaries({}, optional=FIELDS).map(lambda given: TrainConfig(**given))

TEXT = st.text(st.characters(exclude_categories=[]))  # with the halves of characters that are no text
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


def message(function, *args, **kwargs):
    """The one line that a function refuses its arguments with."""
    result, told = outcome(function, *args, **kwargs)
    assert told is not None, result
    return told


def outcome(function, *args, **kwargs):
    """What a function returns, or else the one line that it refuses its arguments with."""
    try:
        return function(*args, **kwargs), None
    except InputError as error:
        told = str(error)
    assert told.isprintable()
    assert len(told) < 300
    return None, told


def test_every_field_is_drawn():
    assert list(TrainConfig.model_fields) == list(FIELDS)


@pytest.mark.parametrize("settings_class", COMMANDS)
def test_every_field_is_described_and_has_a_group(settings_class):
    for name, field in settings_class.model_fields.items():
        assert field.description, name
        assert isinstance(field.json_schema_extra["group"], str)
        assert describe_allowed(field.rebuild_annotation())
    assert settings_class.HIDDEN.issubset(settings_class.model_fields)


@pytest.mark.parametrize("settings_class", COMMANDS)
def test_help_of_a_class_explains_every_field(settings_class):
    entries = re.findall(
        r"^    (\w+)( =.*)? \(.+", settings_class.__doc__.partition("\nAttributes:\n")[2], re.MULTILINE
    )
    assert [name for name, _ in entries] == list(settings_class.model_fields)
    assert max(map(len, settings_class.__doc__.splitlines())) <= 100
    words = " ".join(TrainConfig.__doc__.split())
    assert "epochs = 24 (an integer from 1 to 10000): number of epochs" in words
    assert "flip = 'alternating' (one of random, alternating, none): horizontal flip: " in words


@pytest.mark.parametrize("settings_class", COMMANDS)
def test_defaults_are_valid_and_survive_json(settings_class):
    config = settings_class(**REQUIRED.get(settings_class, {}))
    assert settings_class(**dict(config)) == config
    assert settings_class.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_defaults_are_those_of_the_previous_version_but_for_what_was_measured():
    assert TrainConfig().to_json() == {
        **TrainConfig.from_json(VERSION_0_1).to_json(),
        "augment_on": "auto",
        "weight_decay": 0.6,
        "label_smoothing": 0.2,
        "dirac_init": True,
        "whitening_init": True,
        "flip": "alternating",
        "cutout_size": 10,
    }


def test_settings_are_frozen_and_can_be_compared_and_hashed():
    config = TrainConfig(epochs=3)
    with pytest.raises(ValidationError, match="frozen"):
        config.epochs = 4
    assert {config: 1}[TrainConfig(epochs=3)] == 1
    assert config != TrainConfig()


def test_what_python_callers_may_write():
    config = TrainConfig(pct_start=1, max_lr=1, betas=[0, 0.5], data_dir="a/b", output_dir=Path("c"))
    assert [type(value) for value in (config.pct_start, config.max_lr, *config.betas)] == [float] * 4
    assert (config.betas, config.data_dir) == ((0.0, 0.5), Path("a/b"))
    assert PredictConfig(checkpoint="a", images=["b", Path("c")]).images == (Path("b"), Path("c"))
    assert EvaluateConfig(checkpoint="a", images=None).images is None


def test_the_data_folder_can_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("S10_DATA_DIR", "/from/the/environment")
    assert TrainConfig().data_dir == Path("/from/the/environment")
    assert ExportConfig(checkpoint="a").data_dir == Path("/from/the/environment")
    monkeypatch.delenv("S10_DATA_DIR")
    assert TrainConfig().data_dir == Path("data")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("epochs", 0, "--epochs 0: must be an integer from 1 to 10000"),
        ("epochs", 24.0, "--epochs 24.0: must be an integer from 1 to 10000"),
        ("epochs", "24", "--epochs '24': must be an integer from 1 to 10000"),
        ("batch_size", 0, "--batch-size 0: must be an integer of at least 1"),
        ("max_lr", "fast", "--max-lr 'fast': must be a number above 0 and at most 1000, or auto"),
        ("weight_decay", float("inf"), "--weight-decay inf: must be a number of at least 0"),
        ("weight_decay", 10**400, f"--weight-decay 1{'0' * 76}...: must be a number of at least 0"),
        ("betas", [0.9, "0.99"], "--betas 0.9 '0.99': must be two numbers of at least 0 and below 1"),
        ("betas", (0.9,), "--betas 0.9: must be two numbers of at least 0 and below 1"),
        ("betas", "99", "--betas '99': must be two numbers of at least 0 and below 1"),
        ("anneal_strategy", "LINEAR", "--anneal-strategy 'LINEAR': must be one of linear, cos"),
        ("flip", "up", "--flip 'up': must be one of random, alternating, none"),
        ("dirac_init", 1, "--dirac-init 1: must be true or false"),
        ("data_dir", "a\0b", r"--data-dir 'a\x00b': must be a path"),
        ("data_dir", Path("\ud800"), r"--data-dir \ud800: must be a path"),
        ("max_train_samples", 9, "--max-train-samples 9: must be 0 or an integer of at least 10"),
        ("seed", 2**32, "--seed 4294967296: must be an integer from 0 to 4294967295"),
        ("workers", "Auto", "--workers 'Auto': must be an integer from 0 to 256, or auto"),
        ("device", "cuda:0\n", r"--device 'cuda:0\n': must be auto, cpu, cuda, cuda:N or mps"),
        ("name", "a/b", "--name 'a/b': must be up to 100 letters, digits and . _ -, not starting with a dot or a dash"),
        ("lr_finder_start_lr", 1.0, "--lr-finder-start-lr 1.0: must be below --lr-finder-end-lr 1.0"),
        ("limit", 10, "setting limit: is now called max_train_samples"),
        ("momentum", 0.9, "setting momentum: is unknown"),
        ("two\nlines", 0.9, r"setting two\nlines: is unknown"),
    ],
)
def test_a_bad_value_is_one_line(field, value, told):
    assert message(lambda: TrainConfig(**{field: value})) == told
    assert message(lambda: TrainConfig().replace(**{field: value})) == told


def test_values_without_a_flag_go_by_their_metavar():
    assert message(PredictConfig, checkpoint="a") == "IMAGE: is required"
    assert message(PredictConfig, images=["b"]) == "--checkpoint: is required"
    assert message(PredictConfig, images=[], checkpoint="a") == "IMAGE []: must be a path"
    assert message(CompareConfig, runs=["a", 3]) == "RUN 'a' 3: must be a path"
    assert message(SweepConfig, variants=[3]) == "VARIANT 3: must be a text"


def test_what_is_too_long_is_shortened_and_what_cannot_be_shown_is_escaped():
    assert printable("a" * 80) == "a" * 80
    assert printable("a" * 81) == "a" * 77 + "..."
    assert printable("\n" * 1000) == r"\n" * 38 + "\\..."
    assert printable("ä\r\udcff\x1b[0m\u2028") == r"ä\r\udcff\x1b[0m\u2028"


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "an integer"),
        (Annotated[int, Ge(3)], "an integer of at least 3"),
        (Annotated[int, Ge(3), Le(7)], "an integer from 3 to 7"),
        (Annotated[float, Le(1), Gt(0)], "a number above 0 and at most 1"),
        (Annotated[int, Gt(3), Lt(7)], "an integer above 3 and below 7"),
        (Annotated[float, Ge(0)] | Literal["auto"], "a number of at least 0, or auto"),
        (Path | None, "a path"),
        (tuple[Annotated[float, Ge(0)], Annotated[float, Ge(0)]], "two numbers of at least 0"),
        (tuple[Path, ...], "a path"),
        (Literal["a", "b"], "one of a, b"),
        (bool, "true or false"),
        (str, "a text"),
        (Annotated[str, "two letters"], "two letters"),
    ],
)
def test_what_is_allowed_follows_from_the_constraints(annotation, words):
    assert describe_allowed(annotation) == words


def test_a_copy_is_validated():
    assert TrainConfig(epochs=3).replace(seed=1) == TrainConfig(epochs=3, seed=1)
    assert isinstance(SweepConfig().replace(epochs=3), SweepConfig)
    with pytest.raises(InputError, match="must be below --lr-finder-end-lr"):
        TrainConfig().replace(lr_finder_end_lr=1e-7)


def test_a_quick_benchmark_leaves_no_choice_in_its_size():
    assert BenchmarkConfig(quick=True, repeats=3, epochs=1).quick
    for name, value in (("repeats", 4), ("epochs", 2), ("batch_size", 64), ("max_train_samples", 10)):
        flag = config.flag(name)
        told = message(BenchmarkConfig, quick=True, **{name: value})
        assert told == f"{flag} {value}: must be left out with --quick, which sets it"
    assert message(BenchmarkConfig, batch_size=1) == "--batch-size 1: must be an integer of at least 2"


def test_the_seeds_of_a_sweep_follow_each_other_round_the_end():
    assert SweepConfig().seeds == [0, 1, 2]
    assert SweepConfig(seed=2**32 - 2, num_seeds=3).seeds == [2**32 - 2, 2**32 - 1, 0]


def test_a_sweep_holds_images_out():
    assert SweepConfig().val_size == 5000
    assert message(SweepConfig, dataset="auto") == "--dataset 'auto': must be one of cifar10, synthetic"


def test_json_holds_every_field():
    content = TrainConfig(data_dir=Path("x")).to_json()
    assert list(content) == list(TrainConfig.model_fields)
    assert (content["data_dir"], content["betas"]) == ("x", [0.9, 0.99])


@always_the_same
@given(CONFIGS)
def test_json_leads_back_to_the_config(config):
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("content", [None, True, 3, "settings", [], [["epochs", 3]]])
def test_settings_are_an_object(content):
    assert message(TrainConfig.from_json, content) == "the settings must be a JSON object"


def test_missing_keys_take_their_default_and_unknown_ones_are_refused():
    assert TrainConfig.from_json({}) == TrainConfig()
    assert TrainConfig.from_json({"epochs": 3}) == TrainConfig(epochs=3)
    assert message(TrainConfig.from_json, {"momentum": 0.9}) == "setting momentum: is unknown"
    assert message(EvaluateConfig.from_json, {}) == "--checkpoint: is required"


def test_settings_of_the_previous_version_load():
    changed = {
        "limit": 50,
        "optimizer_betas": [0.8, 0.9],
        "anneal": "cos",
        "cutout": 4,
        "finder_start_lr": 1e-5,
        "finder_steps": 50,
        "runs": 7,
    }
    old = {**VERSION_0_1, **changed}
    assert TrainConfig.from_json(old) == TrainConfig(
        max_train_samples=50,
        betas=(0.8, 0.9),
        anneal_strategy="cos",
        cutout_size=4,
        weight_decay=0.3,
        label_smoothing=0.1,
        dirac_init=False,
        whitening_init=False,
        flip="random",
        lr_finder_start_lr=1e-5,
        lr_finder_steps=50,
        augment_on="cpu",
    )
    assert SweepConfig.from_json({**old, "variants": ["max-lr=1"]}).num_seeds == 7
    assert FindLRConfig.from_json(old).lr_finder_steps == 50
    assert TrainConfig.from_json({"flip": True}).flip == "random"
    assert TrainConfig.from_json({"flip": False}).flip == "none"
    assert EvaluateConfig.from_json({"checkpoint": "a", "tta": "six"}).tta == "flip_shift"
    without_effect = {"mix": "none", "mix_alpha": 3.0, "mix_from": 0.5}
    assert TrainConfig.from_json({**VERSION_0_1, **without_effect}) == TrainConfig.from_json(VERSION_0_1)


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("peak_beta1", 0.8, "--peak-beta1 0.8"),
        ("bias_lr_factor", 64.0, "--bias-lr-factor 64.0"),
        ("norm_momentum", 0.2, "--norm-momentum 0.2"),
        ("cutout_probability", 0.5, "--cutout-probability 0.5"),
        ("rotation", 15.0, "--rotation 15.0"),
        ("mix", "mixup", "--mix 'mixup'"),
        ("ema_decay", 0.99, "--ema-decay 0.99"),
        ("color_jitter", 0.2, "--color-jitter 0.2"),
    ],
)
def test_removed_settings_in_use_do_not_load(key, value, shown):
    told = message(TrainConfig.from_json, {**VERSION_0_1, key: value})
    assert told == f"{shown}: this setting was removed"


@pytest.mark.parametrize("path", sorted(ROOT.glob("results/**/config.json")), ids=lambda path: path.parent.name)
def test_the_config_of_every_result_loads(path):
    content = json.loads(path.read_text())
    config = TrainConfig.from_json(content)
    flip = "alternating" if path.parent.name == "record" else "random"
    assert (config.epochs, config.flip, config.name) == (content["epochs"], flip, content["name"])
    assert TrainConfig.from_json(config.to_json()) == config


def test_the_settings_of_other_results_load():
    content = json.loads((ROOT / "results/lr-curve/sweep.json").read_text())["settings"]
    sweep = SweepConfig.from_json(content)
    assert (sweep.num_seeds, sweep.epochs, sweep.val_size) == (1, 3, 5000)
    assert sweep.variants == ("max-lr=1e-2,2e-3,2.5e-2",)
    content = json.loads((ROOT / "results/lr-range-test/lr_finder.json").read_text())["config"]
    assert FindLRConfig.from_json(content) == FindLRConfig(
        name="lr-range-test",
        augment_on="cpu",
        weight_decay=0.3,
        label_smoothing=0.1,
        dirac_init=False,
        whitening_init=False,
        flip="random",
        cutout_size=8,
    )


def test_old_files_had_no_initialization_to_choose():
    for key in ("limit", "mix"):
        config = TrainConfig.from_json({key: 0 if key == "limit" else "none"})
        assert (config.dirac_init, config.whitening_init, config.augment_on) == (False, False, "cpu")


@always_the_same
@given(st.dictionaries(st.sampled_from([*FIELDS, *RENAMED, *REMOVED]) | TEXT, VALUES, max_size=2))
@example({"two\nlines": 3})
@example({"data_dir": "\ud800"})
@example({"name": "two\nlines"})
def test_any_settings_load_or_are_refused_in_one_line(content):
    for settings_class in (TrainConfig, SweepConfig):
        config, told = outcome(settings_class.from_json, content)
        if told is None:
            assert settings_class.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_name_that_is_no_unicode_is_refused():
    assert message(TrainConfig.from_json, {"\udc80": 1}) == "the names of settings must be valid Unicode"
