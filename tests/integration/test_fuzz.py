"""Whatever a file holds or a user types, a command takes it or says in one line why not."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import zipfile

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from s10_resnet import cli, flags
from s10_resnet.config import Config
from s10_resnet.training import recipe
from s10_resnet.utils import outputs
from s10_resnet.utils import serialization as checkpoint

few = settings(max_examples=150, derandomize=True, deadline=None, database=None)

TEXT = st.text(st.characters(exclude_categories=[]))  # with the halves of characters that are no text
BYTES = st.binary() | TEXT.map(lambda text: text.encode("utf-8", "surrogatepass"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
NAMES = [field.name for field in dataclasses.fields(Config)]
FLAGS = [f"--{name.replace('_', '-')}" for name in (*NAMES, "no_dirac_init", "no_deterministic", "resume", "help")]
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
    checkpoint.save(path, {"weight": torch.arange(6.0).view(2, 3), "step": 3, "betas": (0.9, 0.99)})
    return path


def judged(work, *argv):
    """What work in place of the recipe comes to in a command, or None if that refuses it as it should."""
    told, results = io.StringIO(), []

    def stand_in(*arguments):
        results.append(work(*arguments))

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(told):
        patch.setattr(recipe, "train", stand_in)
        patch.setattr(recipe, "resume", stand_in)
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
    """Some bytes in place of others, here and there."""
    for place, length, new in edits:
        start = int(place * len(content))
        content = content[:start] + new + content[start + length :]
    return content


def read_config(folder, content):
    (folder / "config.json").write_bytes(content)
    config = judged(lambda _: Config.from_json(outputs.read_json(folder / "config.json")))
    if config is not None:
        assert Config.from_json(config.to_json()) == config
        assert os.fsencode(config.data_dir)
    return config


def read_table(folder, content):
    (folder / "history.csv").write_bytes(content)
    rows = judged(lambda _: outputs.read_rows(folder / "history.csv"))
    assert rows is None or all(type(value) is float for row in rows for value in row.values())
    return rows


def read_checkpoint(folder, content):
    (folder / "checkpoint.pt").write_bytes(content)
    state = judged(lambda _: checkpoint.load(folder / "checkpoint.pt"))
    assert state is None or isinstance(state, dict)
    return state


def test_the_judge_lets_good_input_through(folder, real):
    assert read_config(folder, json.dumps(Config().to_json()).encode()) == Config()
    assert read_table(folder, b"a,b\r\n1,2\r\n") == [{"a": 1.0, "b": 2.0}]
    assert read_checkpoint(folder, real.read_bytes())["step"] == 3
    assert judged(lambda config: config, "--epochs", "3") == Config(epochs=3)


@few
@given(BYTES | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_file_as_settings(folder, content):
    assert read_config(folder, content) is None


@few
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=2), st.dictionaries(TEXT, VALUES, max_size=1), EDITS)
@example({"name": "two\nlines"}, {}, [])
@example({}, {"two\nlines": 3}, [])
@example({"data_dir": "\ud800"}, {}, [])
def test_settings_that_are_almost_right(folder, changed, more, edits):
    read_config(folder, edited(json.dumps({**Config().to_json(), **changed, **more}).encode(), edits))


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
    assert (code == 0) == shown.getvalue().startswith("usage: ")


@few
@given(st.sampled_from(NAMES), TYPED)
def test_any_value_of_any_flag(name, text):
    config = judged(lambda config: config, f"--{name.replace('_', '-')}={text}")
    if config is not None:
        assert flags.line(config).isprintable() or "dir" in name


@few
@given(BYTES, BYTES)
def test_any_file_as_a_checkpoint(folder, content, state):
    assert read_checkpoint(folder, content) is None
    assert read_checkpoint(folder, content + checkpoint._seal(content)) is None
    assert read_checkpoint(folder, archive({"a/data.pkl": state, "a/version": b"3\n"})) is None


@few
@given(EDITS, st.sampled_from(["data.pkl", "byteorder", "data/0", "version"]), EDITS)
def test_a_forged_checkpoint(folder, real, edits, name, inner):
    body = edited(real.read_bytes()[:-71], edits)
    read_checkpoint(folder, body + checkpoint._seal(body))
    with zipfile.ZipFile(real) as file:
        parts = {entry: file.read(entry) for entry in file.namelist()}
    forged = {entry: edited(part, inner) if entry.endswith(name) else part for entry, part in parts.items()}
    read_checkpoint(folder, archive(forged))


def archive(parts):
    """What `torch.load` takes for a file of `torch.save`, with a seal."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as written:
        for name, content in parts.items():
            written.writestr(name, content)
    return body.getvalue() + checkpoint._seal(body.getvalue())
