import csv
import json
import re
import subprocess

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s10_resnet.errors import InputError
from s10_resnet.utils import outputs

SHARED = [HealthCheck.function_scoped_fixture]
few = settings(max_examples=50, derandomize=True, deadline=None, database=None, suppress_health_check=SHARED)


@pytest.fixture
def folder(tmp_path_factory):
    """A folder to write to many times, without waiting for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield tmp_path_factory.mktemp("outputs")


def test_a_named_folder_is_made_once(tmp_path):
    folder = outputs.make_run_folder(tmp_path / "new" / "outputs", "run", "train")
    assert folder == tmp_path / "new" / "outputs" / "run"
    assert folder.is_dir()
    (folder / "kept").touch()
    with pytest.raises(InputError, match=r"^--name run: must be a new name; .*run exists and is not overwritten$"):
        outputs.make_run_folder(tmp_path / "new" / "outputs", "run", "train")
    assert (folder / "kept").exists()


def test_default_names_carry_date_and_time_and_never_collide(tmp_path):
    folders = [outputs.make_run_folder(tmp_path, "", "train") for _ in range(5)]
    assert len(set(folders)) == 5
    for folder in folders:
        assert re.fullmatch(r"train-\d{8}-\d{6}(-\d+)?", folder.name)


def test_an_output_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "link"):
        with pytest.raises(InputError, match=rf"^--output-dir {path}: must be a folder"):
            outputs.make_run_folder(path, "run", "train")


def test_json_is_readable_and_strict(tmp_path):
    outputs.write_json(tmp_path / "a.json", {"x": 1.5, "y": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1.5, "y": [1, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        outputs.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text())["x"] == 1.5


def test_rows_are_written_under_one_head(tmp_path):
    path = tmp_path / "history.csv"
    for epochs in (2, 1):
        outputs.write_rows(path, [{"epoch": epoch, "loss": 0.5 / epoch} for epoch in range(1, epochs + 1)])
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows == [{"epoch": "1", "loss": "0.5"}, {"epoch": "2", "loss": "0.25"}][:epochs]
    assert list(tmp_path.iterdir()) == [path]


def refusal(read, path):
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
ROWS = st.lists(st.tuples(st.integers(-(2**53), 2**53), st.floats()), min_size=1)


@few
@given(JSON)
def test_what_is_written_as_json_is_read(folder, content):
    outputs.write_json(folder / "a.json", {"content": content})
    assert outputs.read_json(folder / "a.json") == {"content": content}


@few
@given(ROWS)
def test_what_is_written_as_rows_is_read_to_the_last_bit(folder, rows):
    head = ("epoch", 'a "loss", so to say')
    outputs.write_rows(folder / "a.csv", [dict(zip(head, row, strict=True)) for row in rows])
    read = outputs.read_rows(folder / "a.csv")
    assert repr([tuple(row.items()) for row in read]) == repr(
        [tuple(zip(head, map(float, row), strict=True)) for row in rows]
    )


NO_JSON = {
    "empty": b"",
    "text": b"no json",
    "half": b'{"epochs": 1',
    "more": b"{} {}",
    "a word that JSON does not have": b'{"loss": NaN}',
    "another": b"[1, -Infinity]",
    "deep": b"[" * 100_000,
    "deep and whole": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "no number": b"1" * 5000,
    "not UTF-8": b'"\xff"',
    "a byte order mark": "\ufeff{}".encode(),
}
NO_TABLE = {
    "empty": b"",
    "ragged": b"a,b\r\n1,2\r\n3\r\n",
    "too long": b"a,b\n1,2,3\n",
    "a blank line": b"a,b\n1,2\n\n",
    "words": b"a,b\n1,two\n",
    "holes": b"a,b\n1,\n",
    "an open quote": b'a,b\n1,"2\n',
    "a field that is too long": b"a\n" + b"1" * 200_000 + b"\n",
    "not UTF-8": b"a\n\xff\n",
    "zeros": b"a\n\0\n",
}


@pytest.mark.parametrize("content", NO_JSON.values(), ids=NO_JSON)
def test_what_is_no_json_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    assert refusal(outputs.read_json, tmp_path / "a.json") == "is not JSON"


@pytest.mark.parametrize("content", NO_TABLE.values(), ids=NO_TABLE)
def test_what_is_no_table_is_refused(tmp_path, content):
    (tmp_path / "a.csv").write_bytes(content)
    assert refusal(outputs.read_rows, tmp_path / "a.csv") == "is not a table of numbers under a head"


@pytest.mark.parametrize("read", [outputs.read_json, outputs.read_rows])
def test_what_cannot_be_read_is_refused(tmp_path, read):
    assert refusal(read, tmp_path / "missing") == "cannot be read (No such file or directory)"
    assert refusal(read, tmp_path) == "cannot be read (Is a directory)"


def test_provenance_is_json_and_names_the_versions():
    told = json.loads(json.dumps(outputs.provenance(torch.device("cpu"))))
    assert told["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"python", "s10-resnet", "albumentations", "numpy"} <= told["versions"].keys()
    assert told["hardware"]["accelerator"] is None
    assert told["hardware"]["threads"] == torch.get_num_threads()


def test_the_commit_is_that_of_the_checkout(tmp_path):
    assert outputs._git_commit(tmp_path) is None

    def git(*arguments):
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    assert outputs._git_commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert outputs._git_commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"


def test_a_broken_checkout_has_no_commit(tmp_path):
    (tmp_path / ".git").write_text("nonsense")
    assert outputs._git_commit(tmp_path) is None
