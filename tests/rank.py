"""A process of a training, started by ``torchrun`` with ``-m tests.rank FOLDER fit|train|stop|resume``."""

import signal
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from s10_resnet import cli
from s10_resnet.config import TrainConfig
from s10_resnet.training.run_logger import TrainingLogger
from s10_resnet.training.setup import create_setup
from s10_resnet.training.trainer import Trainer, resume, train
from s10_resnet.utils.launch import launch_env
from tests.runs import fault, send, small, use_small_parts

MAX_LR = 0.01


def settings(folder: Path, **changes) -> TrainConfig:
    return small(folder, batch_size=20, max_train_samples=50, max_lr=MAX_LR, **changes)


def fit(folder: Path) -> None:
    """Saves the batches and the result of this process."""
    setup = create_setup(settings(folder))
    trainer = Trainer(setup, MAX_LR)
    trainer.fit(TrainingLogger())
    content = {
        "batches": [(spec.key, spec.indices.tolist()) for spec in setup.build_loader(epochs=2).sampler],
        "history": [asdict(metrics) for metrics in trainer.state.history],
        "weights": trainer.state.model.state_dict(),
        "moments": trainer.state.optimizer.state_dict()["state"],
    }
    torch.save(content, folder / f"fit-{launch_env().rank}.pt")


def stop(folder: Path) -> None:
    """Gets a SIGTERM in the fifth step, as all processes of torchrun do."""
    argv = ["--dataset", "synthetic", "--device", "cpu", "--precision", "fp32", "--batch-size", "20", "--epochs", "2"]
    argv += ["--max-train-samples", "50", "--max-lr", str(MAX_LR), "--output-dir", str(folder), "--name", "stopped"]
    rank = launch_env().rank
    with fault(5 + (rank == 0), send(signal.SIGTERM)):  # rank 0 computes the loss of the evaluation, too
        code = cli.run("train", argv, prog="train.py")
    (folder / f"stop-{rank}.txt").write_text(str(code))


def main(folder: Path, action: str) -> None:
    use_small_parts(pytest.MonkeyPatch())
    if action == "fit":
        fit(folder)
    elif action == "train":
        train(settings(folder, name="whole"))
    elif action == "stop":
        stop(folder)
    else:
        resume(folder / "stopped")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
