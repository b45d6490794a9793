"""The packages stand on levels: a module imports only from packages that are listed before its own in `PACKAGES`."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "s10_resnet"
LEVELS = (
    ("errors", "utils"),
    ("config", "data", "models"),
    ("reporting", "evaluation"),
    ("training", "experiments", "benchmark"),
    ("cli", "__main__", "__init__"),
)
PACKAGES = [name for level in LEVELS for name in level]
SAME_PACKAGE = {"arguments": "config"}  # the command line is made of the settings
MAX_LINES = 400


def modules_of(root: Path) -> dict[str, Path]:
    """Returns the files of a package by dotted name below the package, such as ``data.loader``."""
    return {".".join(path.relative_to(root).with_suffix("").parts): path for path in sorted(root.rglob("*.py"))}


def imports_of(path: Path, root: Path) -> list[tuple[int, str]]:
    """Returns line and dotted name of every module of the package that a file imports, in functions, too."""
    known, found = modules_of(root), []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = f"{root.name}." * (node.level > 0) + (node.module or "")
            # "from package import name" imports a module if there is one of that name.
            names = [f"{source}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, *parts = name.split(".")
            if top != root.name:
                continue
            while parts and ".".join(parts) not in known and ".".join((*parts, "__init__")) not in known:
                parts.pop()
            module = ".".join(parts)
            found.append((node.lineno, module if module in known else ".".join((*parts, "__init__"))))
    return found


def package_of(module: str) -> str:
    name = module.split(".")[0]
    return SAME_PACKAGE.get(name, name)


def violations(root: Path) -> list[str]:
    """Returns the imports that lead up, or sideways to a package that is listed later."""
    return [
        f"{module} line {line} imports {imported}"
        for module, path in modules_of(root).items()
        for line, imported in imports_of(path, root)
        if PACKAGES.index(package_of(imported)) > PACKAGES.index(package_of(module))
    ]


def cycle(root: Path) -> list[str]:
    """Returns modules each of which imports the next one and the last the first; empty if there are none such."""
    graph = {module: {name for _, name in imports_of(path, root)} for module, path in modules_of(root).items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_every_package_has_its_place():
    assert {package_of(module) for module in modules_of(PACKAGE)} <= set(PACKAGES)


def test_imports_lead_only_down():
    assert violations(PACKAGE) == []


def test_no_modules_import_each_other():
    assert cycle(PACKAGE) == []


def test_nothing_is_imported_relatively():
    relative = [
        f"{module} line {node.lineno}"
        for module, path in modules_of(PACKAGE).items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_every_folder_is_a_package():
    folders = {path.parent for path in modules_of(PACKAGE).values()}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_no_file_is_long():
    files = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".html")]
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


@pytest.mark.parametrize(
    ("module", "text", "found"),
    [
        ("data.loader", "from pack.errors import InputError", 0),
        ("data.loader", "import pack.utils.io, torch", 0),
        ("data.loader", "from pack.data import dataset", 0),
        ("data.loader", "from pack import config", 0),
        ("config", "from pack.data.dataset import Split", 1),
        ("data.loader", "def load():\n    from pack.models import resnet", 1),
        ("errors", "import pack.training.loop", 1),
        ("utils.io", "from pack import train", 1),
        ("utils.io", "from pack import errors, cli", 1),
        ("training.loop", "from pack.training.loop import step", 0),
    ],
)
def test_the_rules_see_what_they_are_for(tmp_path, module, text, found):
    root = tmp_path / "pack"
    for name in (
        "errors",
        "utils.io",
        "config",
        "data.dataset",
        "data.loader",
        "models.resnet",
        "training.loop",
        "cli",
    ):
        path = root.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if name == module else "")
    for folder in (root, *(path for path in root.iterdir() if path.is_dir())):
        (folder / "__init__.py").touch()
    assert len(violations(root)) == found
    assert bool(cycle(root)) == (module == "training.loop")
