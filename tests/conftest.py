import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from s10_resnet.config import Config
from s10_resnet.data import dataset as data
from s10_resnet.data import synthetic
from s10_resnet.data.dataset import Split
from s10_resnet.models import resnet as model
from s10_resnet.reporting import figures as report
from s10_resnet.training import recipe
from s10_resnet.training.state import Totals
from s10_resnet.utils import io as files
from s10_resnet.utils import runtime, signals
from s10_resnet.utils import serialization as checkpoint
from tests.runs import at_call, small, small_network

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def cifar_root() -> Path:
    """A folder that holds the real CIFAR-10; the tests that need it are skipped where there is none."""
    for root in (Path(os.environ.get("S10_DATA_DIR", "data")), REPOSITORY.parent / "shared"):
        if (root / "cifar-10-batches-py").is_dir():
            return root
    pytest.skip("no real CIFAR-10 here: set S10_DATA_DIR to a folder that holds cifar-10-batches-py")


@pytest.fixture
def split() -> Split:
    """Fifty drawn images of the ten classes."""
    return Split(*synthetic.draw(50, seed=7), synthetic.CLASSES)


@pytest.fixture
def noise_images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def cpu() -> runtime.Runtime:
    """fp32 on the CPU: the same numbers on every machine."""
    return runtime.start("cpu", "fp32")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """A command that ends by a signal ignores any other from then on: its process would end."""
    before = handlers()
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def heard_by_nobody(_handlers: None) -> None:
    """A signal that is not heeded fails its test, and ends neither the tests nor those after it."""
    for signum in handlers():
        signal.signal(signum, unheard)


def unheard(signum: int, frame: object) -> None:
    raise AssertionError(f"{signal.Signals(signum).name} was not heeded")


def handlers() -> dict:
    return {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}


@pytest.fixture(scope="module")
def small_parts() -> Iterator[None]:
    """A network that trains in no time, and pictures that draw themselves."""
    parts = tuple(Split(*synthetic.draw(200, seed), synthetic.CLASSES) for seed in (1, 2))

    def draw(*names):
        return lambda folder, *_: [files.write_whole(folder / name, b"") for name in names]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load_synthetic", lambda: parts)
        patch.setattr(model, "build_network", small_network)
        patch.setattr(report, "draw_plan", draw("samples.png", "lr_schedule.png"))
        patch.setattr(report, "draw_results", draw("curves.png", "confusion.png", "mistakes.png"))
        yield


@pytest.fixture(scope="module")
def finished(small_parts: None, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A run that nothing interrupted: its config, folder and summary."""
    config = small(tmp_path_factory.mktemp("outputs"))
    return config, config.output_dir / "run", recipe.train(config)


@pytest.fixture
def half(small_parts: None, tmp_path: Path) -> Path:
    """A run that was stopped in its second epoch."""
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, Totals, "add", 5)
        with pytest.raises(signals.Stopped):
            recipe.train(small(tmp_path))
    return tmp_path / "run"


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves as ``last.pt``: the true network, with random weights and running statistics."""
    torch.manual_seed(5)
    network = model.build_network((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    network(torch.randint(0, 256, (64, 32, 32, 3), dtype=torch.uint8))  # in training mode: moves the statistics
    path = tmp_path_factory.mktemp("weights") / "last.pt"
    checkpoint.save(path, weights_content(network))
    return path


def weights_content(network: torch.nn.Module) -> dict:
    return {
        "model": network.state_dict(),
        "epoch": 3,
        "test_accuracy": 0.25,
        "dataset": "synthetic",
        "classes": list(synthetic.CLASSES),
        "config": Config(dataset="synthetic").to_json(),
    }
