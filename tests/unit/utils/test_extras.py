import math
import sys

import pytest

from s10_resnet.errors import InputError
from s10_resnet.utils import extras


def installed(monkeypatch, folder, **modules):
    """Modules with this text, which can be imported for the length of a test."""
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(folder)


def test_what_is_installed_is_imported():
    assert extras.need("math", "export", "--format onnx") is math
    assert extras.need("xml.dom", "export", "--format onnx").__name__ == "xml.dom"  # not the package around it


@pytest.mark.parametrize("package", ["s10_no_such_package", "s10_no_such_package.torch"])
def test_what_is_not_installed_is_one_line_that_says_what_to_do(package):
    with pytest.raises(InputError) as caught:
        extras.need(package, "report", "--html")
    assert str(caught.value) == "--html: needs s10_no_such_package, which is not installed: pip install '.[report]'"


def test_another_package_that_is_missing_is_not_hidden(monkeypatch, tmp_path):
    installed(monkeypatch, tmp_path, s10_halfway="import s10_no_such_package")
    with pytest.raises(ModuleNotFoundError, match="s10_no_such_package"):
        extras.need("s10_halfway", "export", "--format onnx")


def test_a_package_that_fails_is_not_called_missing(monkeypatch, tmp_path):
    installed(monkeypatch, tmp_path, s10_broken="from s10_broken import no_such_name")
    with pytest.raises(ImportError, match="no_such_name"):
        extras.need("s10_broken", "export", "--format onnx")
