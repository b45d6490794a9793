import doctest
import subprocess
import sys

import pytest

import s10_resnet
from s10_resnet.data import dataset as data
from s10_resnet.data import synthetic
from s10_resnet.data.dataset import Split
from s10_resnet.evaluation import predict as prediction
from tests.conftest import REPOSITORY


@pytest.fixture
def _small_data(monkeypatch):
    """The examples take some of many synthetic images; drawing the many would take longer than training."""
    parts = tuple(Split(*synthetic.draw(size, seed), synthetic.CLASSES) for size, seed in ((500, 1), (60, 2)))
    monkeypatch.setattr(data, "load_synthetic", lambda: parts)


@pytest.mark.usefixtures("_small_data")
def test_the_examples_are_true(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(s10_resnet)
    assert (result.failed, result.attempted > 6) == (0, True)
    checkpoint, images = "outputs/quick/last.pt", data.load_synthetic()[1].images[:4]
    result = doctest.testmod(prediction, extraglobs={"checkpoint": checkpoint, "images": images})
    assert (result.failed, result.attempted) == (0, 4)


def test_everything_that_is_promised_is_there():
    for name in s10_resnet.__all__:
        assert getattr(s10_resnet, name).__doc__
        assert name in dir(s10_resnet)
    assert set(s10_resnet._ROOMS) == set(s10_resnet.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        s10_resnet.nothing  # noqa: B018


def test_the_package_is_imported_in_no_time():
    script = "import sys, s10_resnet; from s10_resnet import Config; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"
