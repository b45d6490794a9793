import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s10_resnet.arguments import OTHER_TOOLS, parse_args, parse_variant, to_flags
from s10_resnet.config import (
    REMOVED,
    RENAMED,
    CompareConfig,
    EvaluateConfig,
    FindLRConfig,
    PredictConfig,
    SweepConfig,
    TrainConfig,
    flag,
    is_positional,
)
from tests.unit.test_config import COMMANDS, TEXT, always_the_same, message, outcome

TYPED = TEXT | st.sampled_from(["3", "0.5", "auto", "-1", "1e999", "--", "-", "=", "", "a\0b", "\udcff", "9" * 5000])
FLAGS = [
    *map(flag, [*TrainConfig.model_fields, *RENAMED, *REMOVED, *OTHER_TOOLS]),
    *("--no-dirac-init", "--no-deterministic", "--resume", "--config", "--help", "-h", "--version"),
]
WORDS = (
    TYPED.map(lambda text: [text])
    | st.sampled_from(FLAGS).map(lambda flag: [flag])
    | st.tuples(st.sampled_from(FLAGS), TYPED).map(list)
    | st.tuples(st.sampled_from(FLAGS), TYPED).map(lambda pair: ["=".join(pair)])
)


def parse(line, settings_class=TrainConfig, **options):
    return parse_args(settings_class, shlex.split(line), **options)


def refused(line, settings_class=TrainConfig, **options):
    return message(parse, line, settings_class, **options)


def shown(capsys, *argv, settings_class=TrainConfig, **options):
    """What is printed when a flag such as --help ends the process."""
    with pytest.raises(SystemExit) as ended:
        parse_args(settings_class, argv, **options)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_every_kind_of_flag_is_read():
    assert parse(
        "--epochs 3 --max-lr auto --betas 0.8 0.95 --flip none --dirac-init --no-deterministic --workers 2 "
        "--data-dir /some/where --weight-decay 0 --anneal-strategy=cos --name a-run --max-train-samples 0"
    ) == {
        "epochs": 3,
        "max_lr": "auto",
        "betas": (0.8, 0.95),
        "flip": "none",
        "dirac_init": True,
        "deterministic": False,
        "workers": 2,
        "data_dir": Path("/some/where"),
        "weight_decay": 0.0,
        "anneal_strategy": "cos",
        "name": "a-run",
        "max_train_samples": 0,
    }
    assert parse("a 'b c' --checkpoint d --json --plot e.png", PredictConfig) == {
        "images": (Path("a"), Path("b c")),
        "checkpoint": Path("d"),
        "json_": True,
        "plot": Path("e.png"),
    }
    assert parse("--num-seeds 5 max-lr=1 'flip=none cutout-size=4'", SweepConfig) == {
        "variants": ("max-lr=1", "flip=none cutout-size=4"),
        "num_seeds": 5,
    }


def test_words_of_a_value_are_no_flags():
    assert parse("--data-dir '--a b'") == {"data_dir": Path("--a b")}
    assert refused("--data-di='a b'").startswith("--data-di: is unknown; did you mean --data-dir?")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--batch-size 0", "--batch-size 0: must be an integer of at least 1"),
        ("--epochs 2.5", "--epochs 2.5: must be an integer from 1 to 10000"),
        (f"--epochs {'1' * 5000}", f"--epochs {'1' * 77}...: must be an integer from 1 to 10000"),
        ("--max-lr fast", "--max-lr fast: must be a number above 0 and at most 1000, or auto"),
        ("--max-lr -1e-3", "--max-lr -1e-3: must be a number above 0 and at most 1000, or auto"),
        ("--weight-decay -1", "--weight-decay -1: must be a number of at least 0"),
        ("--betas 0.9 x", "--betas 0.9 x: must be two numbers of at least 0 and below 1"),
        ("--max-train-samples 9", "--max-train-samples 9: must be 0 or an integer of at least 10"),
        ("--workers some", "--workers some: must be an integer from 0 to 256, or auto"),
        ("--name 'two\nlines'", r"--name two\nlines: must be up to 100 letters, digits and . _ -, not starting with "),
        ("--name=--", "--name --: must be up to 100 letters, digits and . _ -, not starting with a dot or a dash"),
        ("--data-dir a\0b", r"--data-dir a\x00b: must be a path"),
        ("--epochs", "--epochs: expected one argument; --help lists"),
        ("--betas 0.9", "--betas: expected 2 arguments; --help lists"),
        ("stray", "stray: unexpected argument; --help lists what there is"),
        ("epochs=3", "epochs=3: unexpected argument; --help lists what there is"),
        ("--epochs 3 'two\nlines'", r"two\nlines: unexpected argument; --help lists what there is"),
    ],
)
def test_a_bad_command_line_is_one_line(line, told):
    assert refused(line).startswith(told)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--lr 3", "--lr: is unknown; did you mean --max-lr?"),
        ("-lr 3", "-lr: is unknown; did you mean --max-lr?"),
        ("--num-workers 3", "--num-workers: is unknown; did you mean --workers?"),
        ("--amp", "--amp: is unknown; did you mean --precision?"),
        ("--batch_size 3", "--batch_size: is unknown; did you mean --batch-size?"),
        ("--epoch 3", "--epoch: is unknown; did you mean --epochs?"),
        ("--limit 3", "--limit: is now called --max-train-samples"),
        ("--mix mixup", "--mix: was removed"),
        ("--runs 3", "--runs: was removed; s10-sweep trains several seeds"),
        ("--xyzzy", "--xyzzy: is unknown; --help lists what there is"),
        ("--two\nlines", "--two\\nlines: is unknown"),
        ("--resume x", "--resume: is unknown"),
    ],
)
def test_an_unknown_flag_is_answered_with_the_one_that_may_be_meant(line, told, monkeypatch):
    monkeypatch.setattr("sys.argv", ["s10-train"])
    assert refused(line.replace("\n", "'\n'")).startswith(told)


def test_only_flags_of_the_command_are_meant():
    assert refused("--runs 3", SweepConfig) == "--runs: is now called --num-seeds"
    assert refused("--lr 3", EvaluateConfig) == "--lr: is unknown; --help lists what there is"
    assert refused("--chekpoint a", EvaluateConfig) == "--chekpoint: is unknown; did you mean --checkpoint?"
    assert refused("--tensorboard", SweepConfig).startswith("--tensorboard: is unknown")
    assert refused("--variants flip=none", SweepConfig) == "--variants: is unknown; --help lists what there is"
    assert refused("outputs/run", EvaluateConfig) == (
        "outputs/run: unexpected argument; did you mean --checkpoint outputs/run?"
    )
    assert refused("--tta six --checkpoint a", EvaluateConfig) == "--tta six: is now called flip_shift"
    assert refused("--config a --checkpoint b", EvaluateConfig).startswith("--config: is unknown")


def test_what_is_missing_is_named():
    for line, settings_class, told in (
        ("", EvaluateConfig, "--checkpoint: is required"),
        ("--checkpoint a", PredictConfig, "IMAGE: is required"),
        ("", CompareConfig, "RUN: is required"),
    ):
        assert message(settings_class, **parse(line, settings_class)) == told
    assert refused("--checkpoint a b 'c\0'", PredictConfig) == r"IMAGE b c\x00: must be a path"


def test_a_run_to_resume_is_there(tmp_path):
    assert parse(f"--resume {tmp_path} --workers 2", resume_help="x") == {"resume": tmp_path, "workers": 2}
    (tmp_path / "checkpoint.pt").touch()
    assert parse(f"--resume={tmp_path}/checkpoint.pt", resume_help="x") == {"resume": tmp_path / "checkpoint.pt"}


@pytest.mark.parametrize("path", ["nowhere", "", "a\0b", "a" * 5000, "/dev/null/below", "\udcff\ud800", "--"])
def test_a_run_that_is_not_there_cannot_be_resumed(path):
    told = message(parse_args, TrainConfig, [f"--resume={path}"], resume_help="x")
    assert told.startswith("--resume ")
    assert told.endswith(": must be an existing folder of a run, or a file in one")


@pytest.fixture
def config_file(tmp_path):
    """The settings of an earlier run."""
    path = tmp_path / "config.json"
    config = TrainConfig(
        epochs=5, max_lr=0.1, betas=(0.8, 0.9), weight_decay=0.1, name="earlier", seed=3, tensorboard=True
    )
    path.write_text(json.dumps(config.to_json()))
    return path


def test_the_settings_of_an_earlier_run_are_a_base(config_file):
    given = parse(f"--epochs 7 --config {config_file} --seed 0")
    assert given == {
        "epochs": 7,
        "max_lr": 0.1,
        "betas": (0.8, 0.9),
        "weight_decay": 0.1,
        "seed": 0,
        "tensorboard": True,
    }
    assert parse(f"--config {config_file}", FindLRConfig) == {"betas": (0.8, 0.9), "weight_decay": 0.1, "seed": 3}
    sweep = SweepConfig(**parse(f"max-lr=2 --config {config_file}", SweepConfig))
    assert (sweep.epochs, sweep.variants, sweep.val_size, sweep.name) == (5, ("max-lr=2",), 5000, "")
    assert not sweep.tensorboard


def test_a_base_can_be_of_the_previous_version(config_file):
    config_file.write_text(json.dumps({"limit": 10, "rotation": 0.0, "flip": False, "dataset": "auto"}))
    base = {"max_train_samples": 10, "flip": "none", "dataset": "auto"}
    assert parse(f"--config {config_file}") == {
        **base,
        "augment_on": "cpu",
        "dirac_init": False,
        "whitening_init": False,
    }
    assert refused(f"--config {config_file}", SweepConfig) == (
        f"--config {config_file}: --dataset auto: must be one of cifar10, synthetic"
    )


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "must be the config.json of a run"),
        (b"\xff", "must be the config.json of a run"),
        (b"[" * 100_000, "must be the config.json of a run"),
        (b"9" * 5000, "must be the config.json of a run"),
        (b'{"epochs": 0}', "--epochs 0: must be an integer from 1 to 10000"),
        (b'{"rotation": 1}', "--rotation 1: this setting was removed"),
    ],
)
def test_a_bad_base_is_one_line(config_file, content, told):
    config_file.write_bytes(content)
    assert refused(f"--config {config_file}") == f"--config {config_file}: {told}"


def test_a_base_is_a_file():
    reader, writer = os.pipe()
    os.write(writer, b"{}")
    os.close(writer)
    for path in (f"/dev/fd/{reader}", "missing", "zero\0byte"):
        assert refused(f"--config '{path}'").endswith(": must be the config.json of a run")
    os.close(reader)


def test_a_run_goes_on_with_its_own_settings(config_file):
    told = refused(f"--config {config_file} --resume {config_file.parent}", resume_help="x")
    assert told == "--config: cannot be used with --resume, which takes the settings of the run"


@pytest.mark.parametrize("settings_class", COMMANDS)
def test_help_fits_a_narrow_terminal_and_shows_every_flag(settings_class, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("S10_DATA_DIR", "100%data\udcff")
    options = {
        "prog": "tool.py",
        "description": "Does " + "it " * 100,
        "epilog": "example: tool.py",
        "resume_help": "goes on",
    }
    text = shown(capsys, "--help", settings_class=settings_class, **options)
    assert text.startswith("usage: tool.py ")
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    for name, field in settings_class.model_fields.items():
        assert is_positional(field) or (f" {flag(name)}" in text) == (name not in settings_class.HIDDEN)
        if name not in settings_class.HIDDEN:
            assert " ".join(field.description.split()) in words.replace("Grad- CAM", "Grad-CAM")
            assert is_positional(field) or f"\n{field.json_schema_extra['group']}:\n" in text
    assert "example: tool.py" in text
    assert "--resume RUN goes on" in words
    assert ("--config FILE" in text) == (settings_class in (TrainConfig, FindLRConfig, SweepConfig))
    assert ("default: 100%data" in words) == ("data_dir" in settings_class.model_fields)


def test_help_reads_like_argparse(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    words = " ".join(shown(capsys, "-h").split())
    for part in (
        "--epochs N number of epochs (default: 24)",
        "--max-lr X|auto peak learning rate; auto runs the range test first (default: 0.005)",
        "--anneal-strategy {linear,cos} linear or cosine annealing (default: linear)",
        "--betas X X Adam's",
        "(default: 0.9 0.99)",
        "--dirac-init, --no-dirac-init initialize",
        "(default: False)",
        "--data-dir PATH",
        "--max-train-samples N use",
        "--device {auto,cpu,cuda,cuda:N,mps} device",
        "--workers N|auto data",
    ):
        assert part in words
    assert "--resume" not in words
    assert "None" not in " ".join(shown(capsys, "-h", settings_class=EvaluateConfig).split())


def test_the_version_is_that_of_the_package(capsys):
    assert shown(capsys, "--version") == f"s10-resnet {version('s10-resnet')}\n"


def test_help_needs_no_torch():
    code = (
        "import sys; from s10_resnet.arguments import parse_args; from s10_resnet.config import TrainConfig\n"
        "TrainConfig(**parse_args(TrainConfig, ['--epochs', '3']))\n"
        "print([name for name in ('torch', 'numpy', 'albumentations') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


@always_the_same
@given(st.sampled_from(COMMANDS), st.lists(WORDS, max_size=4).map(lambda parts: [word for p in parts for word in p]))
@example(TrainConfig, ["--name=--"])
@example(TrainConfig, ["two\nlines"])
@example(TrainConfig, ["--two\nlines"])
@example(TrainConfig, ["--epochs", "two\nlines"])
@example(TrainConfig, ["--dirac-init=two\nlines"])
def test_any_command_line_is_taken_or_refused_in_one_line(settings_class, argv):
    printed, code = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(printed):
            given, _ = outcome(parse_args, settings_class, argv, resume_help="continue a run")
        assert all(name in ("resume", *settings_class.model_fields) for name in given or {})
    except SystemExit as ended:
        code = ended.code
    assert code in (None, 0)
    assert (code == 0) == printed.getvalue().startswith(("usage: ", "s10-resnet "))


@pytest.mark.parametrize(
    ("text", "variants"),
    [
        ("max-lr=2e-3", {"max-lr=2e-3": {"max_lr": 0.002}}),
        ("max-lr=2e-3,auto", {"max-lr=2e-3": {"max_lr": 0.002}, "max-lr=auto": {"max_lr": "auto"}}),
        (
            "cutout-size=4,6 flip=alternating,none",
            {
                "cutout-size=4 flip=alternating": {"cutout_size": 4, "flip": "alternating"},
                "cutout-size=4 flip=none": {"cutout_size": 4, "flip": "none"},
                "cutout-size=6 flip=alternating": {"cutout_size": 6, "flip": "alternating"},
                "cutout-size=6 flip=none": {"cutout_size": 6, "flip": "none"},
            },
        ),
        ("betas=0.9:0.95", {"betas=0.9:0.95": {"betas": (0.9, 0.95)}}),
        ("batch_size=256", {"batch-size=256": {"batch_size": 256}}),
        ("dirac-init=true,no", {"dirac-init=true": {"dirac_init": True}, "dirac-init=no": {"dirac_init": False}}),
    ],
)
def test_variants(text, variants):
    assert parse_variant(text) == variants


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "VARIANT '': must be settings such as max-lr=2e-3,5e-3"),
        (" \n ", r"VARIANT ' \n ': must be settings such as max-lr=2e-3,5e-3"),
        ("max-lr", "VARIANT max-lr: must be NAME=VALUE or NAME=VALUE,VALUE, as in max-lr=2e-3,5e-3"),
        ("flip=none stray", "VARIANT stray: must be NAME=VALUE"),
        ("xyzzy=3", "VARIANT xyzzy=3: is unknown"),
        ("lr=3", "VARIANT lr=3: is unknown; did you mean max-lr?"),
        ("rotation=3", "VARIANT rotation=3: was removed"),
        (
            "seed=3",
            "VARIANT seed=3: cannot be varied; settings of training, augmentation, learning rate range test can",
        ),
        ("max-lr=", "--max-lr : must be a number above 0 and at most 1000, or auto"),
        ("cutout-size=99", "--cutout-size 99: must be an integer from 0 to 32"),
        ("betas=0.9", "--betas 0.9: must be two numbers of at least 0 and below 1"),
        ("betas=0.9:x", "--betas 0.9 x: must be two numbers of at least 0 and below 1"),
    ],
)
def test_what_cannot_be_tried_is_named(text, told):
    assert message(parse_variant, text).startswith(told)


def test_settings_become_flags():
    values = {"batch_size": 5, "deterministic": True, "tensorboard": False, "device": "cpu", "betas": (0.5, 0.75)}
    flags = to_flags(values)
    assert flags[:5] == ["--batch-size", "5", "--deterministic", "--no-tensorboard", "--device"]
    assert parse_args(TrainConfig, flags) == values
