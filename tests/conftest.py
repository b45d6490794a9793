import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from s10_resnet.config import TrainConfig
from s10_resnet.data import synthetic
from s10_resnet.data.dataset import Split
from s10_resnet.models.resnet import build_model
from s10_resnet.training import trainer
from s10_resnet.utils import runtime, serialization
from tests.runs import small, stop, use_small_parts

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
    """Fifty synthetic images of the ten classes."""
    return Split(*synthetic.generate(50, seed=7), synthetic.CLASSES)


@pytest.fixture
def noise_images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def cpu() -> runtime.Runtime:
    """fp32 on the CPU: the same numbers on every machine."""
    return runtime.init_runtime("cpu", "fp32")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Restores the handlers after a command that was ended by a signal, which ignores all others from then on.

    A shell starts its background jobs with SIGINT ignored, which the package respects: tests hear it nevertheless.
    """
    before = handlers()
    for signum, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(signum, signal.default_int_handler)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def heard_by_nobody(_handlers: None) -> None:
    """A signal that is not handled fails its test, and ends neither the tests nor those after it."""
    for signum in handlers():
        signal.signal(signum, unheard)


def unheard(signum: int, frame: object) -> None:
    raise AssertionError(f"{signal.Signals(signum).name} was not handled")


def handlers() -> dict:
    return {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}


@pytest.fixture(scope="module")
def small_parts() -> Iterator[None]:
    """A network that trains in no time, few images and no plots."""
    with pytest.MonkeyPatch.context() as patch:
        use_small_parts(patch)
        yield


@pytest.fixture(scope="module")
def finished(small_parts: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Path, dict]:
    """A run that nothing interrupted: its config, folder and summary."""
    config = small(tmp_path_factory.mktemp("outputs"))
    return config, config.output_dir / "run", trainer.train(config)


@pytest.fixture
def half(small_parts: None, tmp_path: Path) -> Path:
    """A run that was stopped after the first step of its second epoch."""
    return stop(small(tmp_path), 5)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``last.pt`` of the real network, with random weights and running statistics."""
    torch.manual_seed(5)
    network = build_model((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    network(torch.randint(0, 256, (64, 32, 32, 3), dtype=torch.uint8))  # in training mode: moves the statistics
    path = tmp_path_factory.mktemp("weights") / "last.pt"
    serialization.save(path, weights_content(network))
    return path


def weights_content(network: torch.nn.Module) -> dict:
    return {
        "model": network.state_dict(),
        "epoch": 3,
        "eval_accuracy": 0.25,
        "eval_split": "test",
        "dataset": "synthetic",
        "classes": list(synthetic.CLASSES),
        "config": TrainConfig(dataset="synthetic").to_json(),
    }
