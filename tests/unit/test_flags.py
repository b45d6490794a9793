import dataclasses
import shlex
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given

from s10_resnet import flags, knobs
from s10_resnet.config import Config
from s10_resnet.errors import InputError
from s10_resnet.settings import Settings
from tests.unit.test_config import CONFIGS, always_the_same

BAD_VALUES = [
    ("--epochs", "0"),
    ("--epochs", "-3"),
    ("--epochs", "2.5"),
    ("--epochs", "many"),
    ("--epochs", "10001"),
    ("--epochs", "1" * 5000),  # more digits than Python reads
    ("--batch-size", "0"),
    ("--max-lr", "0"),
    ("--max-lr", "-0.1"),
    ("--max-lr", "-1e-3"),
    ("--max-lr", "nan"),
    ("--max-lr", "inf"),
    ("--max-lr", "1e38"),
    ("--max-lr", "fast"),
    ("--weight-decay", "-1"),
    ("--weight-decay", "inf"),
    ("--label-smoothing", "1"),
    ("--label-smoothing", "-0.1"),
    ("--pct-start", "1.5"),
    ("--anneal", "square"),
    ("--div-factor", "0.5"),
    ("--div-factor", "inf"),
    ("--final-div-factor", "0"),
    ("--logit-scale", "0"),
    ("--crop-padding", "17"),
    ("--cutout", "33"),
    ("--seed", "-1"),
    ("--seed", "4294967296"),
    ("--dataset", "mnist"),
    ("--val-size", "-5"),
    ("--limit", "9"),
    ("--device", "tpu"),
    ("--device", "cuda:x"),
    ("--precision", "int8"),
    ("--workers", "-1"),
    ("--workers", "some"),
    ("--finder-start-lr", "0"),
    ("--finder-end-lr", "-inf"),
    ("--finder-steps", "5"),
    ("--name", "../elsewhere"),
    ("--name", ".hidden"),
    ("--checkpoint-every-minutes", "0"),
    ("--data-dir", "with a zero\0byte"),
    ("--output-dir", "\0"),
]


@pytest.mark.parametrize(("flag", "value"), BAD_VALUES)
def test_bad_value_names_flag_value_and_what_is_allowed(flag, value):
    with pytest.raises(InputError) as caught:
        flags.read(Config, [flag, value])
    message = str(caught.value)
    assert message.startswith(f"{flag} {value}: must be ")
    assert "\n" not in message


@pytest.mark.parametrize("betas", [("0.9", "1"), ("-0.1", "0.99"), ("0.9", "x"), ("0.9", "nan")])
def test_bad_betas_are_named_together(betas):
    with pytest.raises(InputError, match=rf"^--optimizer-betas {betas[0]} {betas[1]}: must be two numbers"):
        flags.read(Config, ["--optimizer-betas", *betas])


@pytest.mark.parametrize(
    "argv", [["--no-such-flag"], ["--epochs"], ["--optimizer-betas", "0.9"], ["stray"], ["--epoch", "3"]]
)
def test_a_malformed_command_line_is_one_line(argv):
    with pytest.raises(InputError) as caught:
        flags.read(Config, argv)
    assert argv[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_kind_of_flag_is_read():
    line = (
        "--epochs 3 --max-lr auto --optimizer-betas 0.8 0.95 --flip none --dirac-init --no-deterministic --workers 2 "
        "--data-dir /some/where --weight-decay 0 --anneal cos --name a-run --limit 0 --val-size 100"
    )
    config = Config(**flags.read(Config, shlex.split(line)))
    assert config == Config(
        epochs=3,
        max_lr="auto",
        optimizer_betas=(0.8, 0.95),
        flip="none",
        dirac_init=True,
        workers=2,
        data_dir=Path("/some/where"),
        weight_decay=0.0,
        anneal="cos",
        name="a-run",
        val_size=100,
    )


def test_the_flags_lead_back_to_the_config():
    config = Config(
        epochs=5,
        max_lr=0.002,
        flip="none",
        dirac_init=True,
        optimizer_betas=(0.85, 0.999),
        data_dir=Path("a folder/with 'quotes'"),
        limit=10,
        finder_start_lr=1e-7,
    )
    assert Config(**flags.read(Config, shlex.split(flags.line(config)))) == config
    assert flags.line(Config()) == ""
    assert flags.line(Config(max_lr=0.002)) == "--max-lr 0.002"


@always_the_same
@given(CONFIGS)
def test_every_config_can_be_typed(config):
    assert Config(**flags.read(Config, shlex.split(flags.line(config)))) == config


@pytest.mark.parametrize("name", ["-run", "--", "--epochs", "-1", "-h"])
def test_what_looks_like_a_flag_can_be_typed_or_is_refused(name):
    config = Config(data_dir=Path(name), output_dir=Path(name))
    with suppress(InputError):
        config = dataclasses.replace(config, name=name)
    assert Config(**flags.read(Config, shlex.split(flags.line(config)))) == config


@dataclasses.dataclass(frozen=True)
class Tool(Settings):
    """Settings with all that those of a training do without."""

    SECTIONS: ClassVar[dict[str, str]] = {"source": "what it reads", "target": "what it writes"}

    files: tuple[Path, ...] = knobs.paths("what to work on", "FILE", "a path")
    source: Path = knobs.path(knobs.REQUIRED, "100% needed", "a folder")
    target: Path | None = knobs.path_or_none("not needed", "a folder")


def test_values_without_a_flag_and_flags_that_are_needed():
    read = flags.read(Tool, ["a", "b", "--source", "c"])
    assert read == {"files": (Path("a"), Path("b")), "source": Path("c")}
    assert Tool(**read).target is None
    assert flags.read(Tool, ["--source", "-1", "--target", "d", "a"])["source"] == Path("-1")
    for argv, missing in ((["a"], "--source"), (["--source", "c"], "FILE")):
        with pytest.raises(InputError, match=f"required: {missing}; --help"):
            flags.read(Tool, argv)
    for argv, told in (
        (["--source", "c", "a", "b\0"], "FILE a b\0: must be a path"),
        (["--source", "\0", "a"], "--source \0: must be a folder"),
    ):
        with pytest.raises(InputError) as caught:
            flags.read(Tool, argv)
        assert str(caught.value) == told


def test_help_says_what_is_needed_and_what_belongs_together(capsys):
    with pytest.raises(SystemExit):
        flags.read(Tool, ["--help"])
    text = capsys.readouterr().out
    assert "what it reads:\n  --source SOURCE  100% needed (a folder; required)" in text
    assert "what it writes:\n  --target TARGET  not needed (a folder; default: none)" in text
    assert "FILE [FILE ...]" in text


def test_only_what_was_given_is_read():
    assert flags.read(Config, []) == {}
    given = flags.read(Config, ["--epochs", "24", "--no-tensorboard"])
    assert given == {"epochs": 24, "tensorboard": False}  # the defaults, but given


def test_a_run_to_resume_is_there(tmp_path):
    assert flags.read(Config, ["--resume", str(tmp_path)], resume="go on") == {"resume": tmp_path}
    (tmp_path / "checkpoint.pt").touch()
    assert flags.read(Config, [f"--resume={tmp_path}/checkpoint.pt", "--workers", "2"], resume="go on") == {
        "resume": tmp_path / "checkpoint.pt",
        "workers": 2,
    }


@pytest.mark.parametrize("path", ["nowhere", "", "a\0b", "a" * 5000, "/dev/null/below", "\udcff\ud800"])
def test_a_run_that_is_not_there_cannot_be_resumed(path):
    with pytest.raises(InputError) as caught:
        flags.read(Config, ["--resume", path], resume="go on")
    assert str(caught.value) == f"--resume {path}: must be the folder of what is to go on, or a file in it"


def test_not_everything_can_be_resumed(tmp_path):
    with pytest.raises(InputError, match=r"^unrecognized arguments: --resume"):
        flags.read(Config, ["--resume", str(tmp_path)])


def test_help_shows_every_flag_with_its_default(capsys, monkeypatch):
    monkeypatch.setenv("S10_DATA_DIR", "100%data")
    with pytest.raises(SystemExit) as ended:
        flags.read(Config, ["--help"], prog="train.py")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in text
    words = " ".join(text.split())
    assert "default: 0.9 0.99" in words
    assert "default: 100%data" in words
    assert "seed of weights, order and augmentation (a whole number from 0 to 4294967295; default: 0)" in words
    assert "--resume" not in text
    for title in Config.SECTIONS.values():
        assert f"\n{title}:\n" in text
    assert text.count("options:\n") == 1  # all flags but --help are in some section
    assert set(Config.SECTIONS) < {field.name for field in dataclasses.fields(Config)}
    with pytest.raises(SystemExit):
        flags.read(Config, ["--help"], resume="go on")
    assert "--resume RUN" in capsys.readouterr().out
