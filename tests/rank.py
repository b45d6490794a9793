"""One of the processes of a training, started by ``torchrun``: leaves what it came to in the folder given."""

import sys
from dataclasses import asdict
from pathlib import Path

import torch

from s10_resnet.data import dataset as data
from s10_resnet.data import synthetic
from s10_resnet.data.dataset import Split
from s10_resnet.models import resnet as model
from s10_resnet.training import loop as engine
from s10_resnet.training import session
from tests.runs import small, small_network

MAX_LR = 0.01


def begin(folder: Path) -> session.Session:
    data.load_synthetic = lambda: tuple(Split(*synthetic.draw(60, seed), synthetic.CLASSES) for seed in (1, 2))
    model.build_network = small_network
    return session.begin(small(folder, batch_size=20, limit=50, epochs=2))


def train(folder: Path) -> None:
    run = begin(folder)
    state, criterion = session.training_state(run, MAX_LR), session.criterion(run)
    images, labels = session.evaluation_tensors(run)
    history = engine.fit(
        state,
        session.loader(run, run.config.epochs),
        criterion,
        lambda: engine.evaluate(state.result, images, labels, criterion, run.runtime),
        epochs=run.config.epochs,
        steps_per_epoch=run.steps_per_epoch,
    )
    content = {
        "plans": [(plan.key, plan.samples.tolist()) for plan in session.loader(run, run.config.epochs).sampler],
        "history": [asdict(record) for record in history],
        "weights": state.model.state_dict(),
        "moments": state.optimizer.state_dict()["state"],
    }
    torch.save(content, folder / f"rank-{run.runtime.rank}-of-{run.runtime.world_size}.pt")


if __name__ == "__main__":
    train(Path(sys.argv[1]))
