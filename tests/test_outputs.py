import csv
import json
import re
import subprocess

import pytest
import torch

from s10_resnet import outputs
from s10_resnet.errors import InputError


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
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=rf"^--output-dir {path}: must be a folder"):
            outputs.make_run_folder(path, "run", "train")


def test_json_is_readable_and_strict(tmp_path):
    outputs.write_json(tmp_path / "a.json", {"x": 1.5, "y": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1.5, "y": [1, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        outputs.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text())["x"] == 1.5


def test_rows_are_added_under_one_head(tmp_path):
    for epoch in (1, 2):
        outputs.append_row(tmp_path / "history.csv", {"epoch": epoch, "loss": 0.5 / epoch})
        with (tmp_path / "history.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["epoch"] for row in rows] == [str(e) for e in range(1, epoch + 1)]
    assert rows[1] == {"epoch": "2", "loss": "0.25"}


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
