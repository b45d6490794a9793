import pytest

from s10_resnet.data import dataset, synthetic
from s10_resnet.data.dataset import Split
from s10_resnet.training import setup as training_setup
from tests.runs import small, small_network, small_splits


@pytest.fixture(scope="module")
def few_images():
    return Split(*synthetic.generate(60, seed=7), synthetic.CLASSES)


@pytest.fixture
def small_setup(monkeypatch, tmp_path):
    """An epoch of two full batches of 25 and one of 10."""
    monkeypatch.setattr(dataset, "load_synthetic", small_splits)
    monkeypatch.setattr(training_setup, "build_model", small_network)
    return training_setup.create_setup(small(tmp_path))
