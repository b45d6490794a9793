"""One of the processes of a training, started by ``torchrun``: it writes its results to the folder given."""

import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from s10_resnet.data import synthetic
from s10_resnet.data.dataset import Split
from s10_resnet.training import setup
from s10_resnet.training.setup import Setup, create_setup
from s10_resnet.training.trainer import Trainer, TrainingLogger
from tests.runs import small, small_network

MAX_LR = 0.01


def begin(folder: Path, patch: pytest.MonkeyPatch) -> Setup:
    """Returns the setup of two epochs of 50 images with a small network."""
    splits = tuple(Split(*synthetic.generate(60, seed), synthetic.CLASSES) for seed in (1, 2))
    patch.setattr(setup, "load_dataset", lambda name, data_dir: (*splits, "synthetic"))
    patch.setattr(setup, "build_model", small_network)
    return create_setup(small(folder, batch_size=20, max_train_samples=50, epochs=2))


def train(folder: Path, patch: pytest.MonkeyPatch) -> None:
    run = begin(folder, patch)
    trainer = Trainer(run, MAX_LR)
    trainer.fit(TrainingLogger())
    content = {
        "batches": [(batch.key, batch.indices.tolist()) for batch in run.build_loader(trainer.epochs).sampler],
        "history": [asdict(metrics) for metrics in trainer.state.history],
        "weights": trainer.state.model.state_dict(),
        "moments": trainer.state.optimizer.state_dict()["state"],
    }
    torch.save(content, folder / f"rank-{run.runtime.rank}-of-{run.runtime.world_size}.pt")


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as monkeypatch:
        train(Path(sys.argv[1]), monkeypatch)
