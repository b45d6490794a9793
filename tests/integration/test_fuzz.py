"""Whatever a file contains or a user types, a command accepts it or says in one line why not."""

import contextlib
import csv
import io
import json
import os
import zipfile

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from s10_resnet import arguments, cli
from s10_resnet.config import CompareConfig, PredictConfig, SweepConfig, TrainConfig, flag
from s10_resnet.errors import InputError
from s10_resnet.training import trainer
from s10_resnet.utils import serialization
from s10_resnet.utils.io import read_csv, read_json

few = settings(max_examples=150, derandomize=True, deadline=None, database=None)

TEXT = st.text(st.characters(exclude_categories=[]))  # with lone surrogates, which are no text
BYTES = st.binary() | TEXT.map(lambda text: text.encode("utf-8", "surrogatepass"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
NAMES = list(TrainConfig.model_fields)
FLAGS = [flag(name) for name in (*NAMES, "no_dirac_init", "no_deterministic", "resume", "config", "help", "version")]
TYPED = TEXT | st.sampled_from(["3", "0.5", "auto", "-1", "1e999", "--", "-", "=", "", "a\0b", "\udcff", "9" * 5000])
WORDS = (
    TYPED.map(lambda text: [text])
    | st.sampled_from(FLAGS).map(lambda flag: [flag])
    | st.tuples(st.sampled_from(FLAGS), TYPED).map(list)
    | st.tuples(st.sampled_from(FLAGS), TYPED).map(lambda pair: ["=".join(pair)])
)
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=8)), max_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def real(folder):
    path = folder / "real.pt"
    serialization.save(path, {"weight": torch.arange(6.0).view(2, 3), "step": 3, "betas": (0.9, 0.99)})
    return path


def judged(work, *argv):
    """Returns the result of work in place of the training in a command, or None if it is refused in one line."""
    told, results = io.StringIO(), []

    def replacement(*arguments):
        results.append(work(*arguments))

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(told):
        patch.setattr(trainer, "train", replacement)
        patch.setattr(trainer, "resume", replacement)
        code = cli.run("train", argv, prog="train.py")
    if code == 0:
        assert told.getvalue() == ""
        return results[0]
    assert code == 2
    assert told.getvalue().startswith("train.py: error: ")
    assert told.getvalue().endswith("\n")
    assert len(told.getvalue().splitlines()) == 1
    return None


def edited(content, edits):
    """Returns the content with some bytes replaced by others."""
    for place, length, new in edits:
        start = int(place * len(content))
        content = content[:start] + new + content[start + length :]
    return content


def read_config(folder, content):
    (folder / "config.json").write_bytes(content)
    config = judged(lambda _: TrainConfig.from_json(read_json(folder / "config.json")))
    if config is not None:
        assert TrainConfig.from_json(config.to_json()) == config
        assert os.fsencode(config.data_dir)
    return config


def read_table(folder, content):
    (folder / "history.csv").write_bytes(content)
    rows = judged(lambda _: read_csv(folder / "history.csv"))
    assert rows is None or all(type(value) is float for row in rows for value in row.values())
    return rows


def read_checkpoint(folder, content):
    (folder / "checkpoint.pt").write_bytes(content)
    state = judged(lambda _: serialization.load(folder / "checkpoint.pt"))
    assert state is None or isinstance(state, dict)
    return state


def test_the_judge_lets_good_input_through(folder, real):
    assert read_config(folder, json.dumps(TrainConfig().to_json()).encode()) == TrainConfig()
    assert read_table(folder, b"a,b\r\n1,2\r\n") == [{"a": 1.0, "b": 2.0}]
    assert read_checkpoint(folder, real.read_bytes())["step"] == 3
    assert judged(lambda config: config, "--epochs", "3") == TrainConfig(epochs=3)


@few
@given(BYTES | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_file_as_settings(folder, content):
    assert read_config(folder, content) in (None, TrainConfig())  # {} has all defaults


@few
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=2), st.dictionaries(TEXT, VALUES, max_size=1), EDITS)
@example({"name": "two\nlines"}, {}, [])
@example({}, {"two\nlines": 3}, [])
@example({"data_dir": "\ud800"}, {}, [])
def test_settings_that_are_almost_right(folder, changed, more, edits):
    read_config(folder, edited(json.dumps({**TrainConfig().to_json(), **changed, **more}).encode(), edits))


@few
@given(BYTES, st.lists(st.lists(TEXT | st.floats() | st.integers(), max_size=3), max_size=4))
def test_any_file_as_a_history(folder, content, rows):
    read_table(folder, content)
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    read_table(folder, text.getvalue().encode("utf-8", "surrogatepass"))


@few
@given(st.lists(WORDS, max_size=4).map(lambda parts: [word for part in parts for word in part]))
@example(["--name=--"])
@example(["two\nlines"])
@example(["--epochs", "two\nlines"])
def test_any_command_line(folder, argv):
    shown, code = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(shown):
            judged(lambda *arguments: arguments, *argv)
    except SystemExit as ended:
        code = ended.code
    assert code in (None, 0)
    assert (code == 0) == shown.getvalue().startswith(("usage: ", "s10-resnet"))


@few
@given(st.sampled_from(NAMES), TYPED)
def test_any_value_of_any_flag(name, text):
    config = judged(lambda config: config, f"--{name.replace('_', '-')}={text}")
    if config is not None:
        assert getattr(config, name) == arguments.parse_args(TrainConfig, [f"{flag(name)}={text}"])[name]


@few
@given(
    st.sampled_from([SweepConfig, CompareConfig, PredictConfig]),
    st.lists(TYPED | st.sampled_from(["max-lr=1e-3", "flip=none,random"]), max_size=3),
)
def test_any_positional_arguments(settings_class, argv):
    required = ["--checkpoint", "run"] if settings_class is PredictConfig else []
    with contextlib.suppress(InputError):
        settings_class(**arguments.parse_args(settings_class, [*required, *argv]))


@few
@given(BYTES, BYTES)
def test_any_file_as_a_checkpoint(folder, content, state):
    assert read_checkpoint(folder, content) is None
    assert read_checkpoint(folder, content + serialization._digest(content)) is None
    assert read_checkpoint(folder, archive({"a/data.pkl": state, "a/version": b"3\n"})) is None


@few
@given(EDITS, st.sampled_from(["data.pkl", "byteorder", "data/0", "version"]), EDITS)
def test_a_forged_checkpoint(folder, real, edits, name, inner):
    body = edited(real.read_bytes()[:-71], edits)
    read_checkpoint(folder, body + serialization._digest(body))
    with zipfile.ZipFile(real) as file:
        parts = {entry: file.read(entry) for entry in file.namelist()}
    forged = {entry: edited(part, inner) if entry.endswith(name) else part for entry, part in parts.items()}
    read_checkpoint(folder, archive(forged))


def archive(parts):
    """Returns an archive like those of `torch.save`, with a digest."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as written:
        for name, content in parts.items():
            written.writestr(name, content)
    return body.getvalue() + serialization._digest(body.getvalue())
