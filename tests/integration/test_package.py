"""The Python interface, and the package as it is installed."""

import doctest
import importlib.util
import os
import subprocess
import sys
import zipfile

import pytest

import s10_resnet
from s10_resnet.data import dataset, synthetic
from s10_resnet.data.dataset import Split
from s10_resnet.evaluation import predict as prediction
from tests.conftest import REPOSITORY


@pytest.fixture
def _small_data(monkeypatch):
    """The examples take some of many synthetic images, which take longer to generate than the training."""
    splits = tuple(Split(*synthetic.generate(size, seed), synthetic.CLASSES) for size, seed in ((500, 1), (60, 2)))
    monkeypatch.setattr(dataset, "load_synthetic", lambda: splits)


@pytest.mark.usefixtures("_small_data")
def test_the_examples_of_the_docstrings_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(s10_resnet)
    assert (result.failed, result.attempted > 6) == (0, True)
    checkpoint, images = "outputs/quick/last.pt", dataset.load_synthetic()[1].images[:4]
    result = doctest.testmod(prediction, extraglobs={"checkpoint": checkpoint, "images": images})
    assert (result.failed, result.attempted) == (0, 4)


def test_the_public_names_are_there():
    for name in s10_resnet.__all__:
        assert getattr(s10_resnet, name).__doc__
        assert name in dir(s10_resnet)
    assert set(s10_resnet._EXPORTS) == set(s10_resnet.__all__)
    assert {"TrainConfig", "train", "find_lr", "load_model", "predict"} <= set(s10_resnet.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        s10_resnet.nothing  # noqa: B018


def test_the_package_and_its_settings_are_imported_without_torch():
    script = "import sys, s10_resnet; from s10_resnet import TrainConfig; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"


def test_a_wheel_trains_from_another_folder(tmp_path):
    """What is not in the wheel, such as templates, is missed only where the repository is out of sight."""
    for package in ("setuptools", "pip"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package}, which builds the wheel, is not installed")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "s10_resnet"):  # the build leaves files beside them
        (source / name).symlink_to(REPOSITORY / name)
    build = "-m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir"
    subprocess.run([sys.executable, *build.split(), tmp_path, source], check=True, capture_output=True, timeout=200)
    (wheel,) = tmp_path.glob("s10_resnet-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    packaged = {path.relative_to(tmp_path / "site") for path in (tmp_path / "site" / "s10_resnet").rglob("*.*")}
    code = (REPOSITORY / "s10_resnet").rglob("*.*")
    assert packaged == {path.relative_to(REPOSITORY) for path in code if "__pycache__" not in path.parts}

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    flags = "--dataset synthetic --max-train-samples 20 --batch-size 10 --epochs 1 --name run --output-dir ."
    ended = subprocess.run(
        [sys.executable, "-m", "s10_resnet", "train", *flags.split()],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (elsewhere / "run" / "report.html").stat().st_size > 10_000
    assert (elsewhere / "run" / "MODEL_CARD.md").is_file()
