import json
import math
import subprocess
import sys

import pytest
import torch

from s10_resnet.errors import InputError
from s10_resnet.utils import environment
from s10_resnet.utils.environment import collect_environment, require_optional
from tests.conftest import REPOSITORY


def test_provenance_is_json_and_names_the_versions():
    told = json.loads(json.dumps(collect_environment(torch.device("cpu"))))
    assert told["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"python", "s10-resnet", "albumentations", "numpy"} <= told["versions"].keys()
    assert told["hardware"]["accelerator"] is None
    assert told["hardware"]["threads"] == torch.get_num_threads()


@pytest.fixture
def git_commit():
    """What a new process finds."""
    return environment._git_commit.__wrapped__


def test_the_commit_is_that_of_the_checkout(tmp_path, git_commit):
    assert git_commit(tmp_path) is None

    def git(*arguments):
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    assert git_commit(tmp_path) == environment._git_commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"
    assert environment._git_commit(tmp_path) == git("rev-parse", "HEAD")  # of the code that this process runs


def test_git_need_not_write_unicode(tmp_path, monkeypatch, git_commit):
    (tmp_path / ".git").mkdir()
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\nprintf 'fatal: \\377' >&2\nexit 128\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(tmp_path) is None


def test_the_variables_of_a_git_hook_name_no_other_repository(tmp_path, monkeypatch, git_commit):
    expected = git_commit(REPOSITORY)
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    assert git_commit(REPOSITORY) == expected


def installed(monkeypatch, folder, **modules):
    """Modules with this text, which can be imported for the length of a test."""
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(folder)


def test_what_is_installed_is_imported():
    assert require_optional("math", "export", "--format onnx") is math
    assert require_optional("xml.dom", "export", "--format onnx").__name__ == "xml.dom"  # not the package around it


@pytest.mark.parametrize("package", ["s10_no_such_package", "s10_no_such_package.torch"])
def test_what_is_not_installed_is_one_line_that_says_what_to_do(package):
    with pytest.raises(InputError) as caught:
        require_optional(package, "report", "--html")
    assert str(caught.value) == "--html: needs s10_no_such_package, which is not installed: pip install '.[report]'"


def test_another_package_that_is_missing_is_not_hidden(monkeypatch, tmp_path):
    installed(monkeypatch, tmp_path, s10_halfway="import s10_no_such_package")
    with pytest.raises(ModuleNotFoundError, match="s10_no_such_package"):
        require_optional("s10_halfway", "export", "--format onnx")
