import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from s10_resnet import runtime, synthetic
from s10_resnet.data import Split

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
