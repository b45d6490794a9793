"""What a `Config` comes to on this machine: the device, the images, and the parts of a training made to measure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from s10_resnet.config import Config
from s10_resnet.data import dataset as data
from s10_resnet.data.dataset import Split
from s10_resnet.data.loader import AugmentedBatches, DeviceBatches, Mixing, Plans, require_sockets, train_loader
from s10_resnet.data.mixing import Mix, unmixed
from s10_resnet.data.transforms import MEAN, STD
from s10_resnet.errors import InputError
from s10_resnet.models import init as initialisation
from s10_resnet.models import resnet as model
from s10_resnet.settings import flag
from s10_resnet.training import optim
from s10_resnet.training import tensorboard as events
from s10_resnet.training.state import TrainingState
from s10_resnet.utils import outputs, runtime

WHITENED = 2000  # images that the first convolution is made for: 1.8 million patches
ONLY_ON_CPU = ("rotation", "color_jitter")


class Session(NamedTuple):
    """A config with everything settled that it leaves open.

    Attributes:
        config: The settings as they were asked for.
        runtime: Device and number format.
        workers: Augmentation processes.
        dataset: What was loaded, ``cifar10`` or ``synthetic``.
        train: The training images.
        evaluation: The images to evaluate on.
        split: What those are called: ``test``, or ``val`` if they were held out.
    """

    config: Config
    runtime: runtime.Runtime
    workers: int
    dataset: str
    train: Split
    evaluation: Split
    split: str

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return math.ceil(len(self.train.labels) / self.config.batch_size)

    @property
    def environment(self) -> dict[str, Any]:
        """What, beside the settings, the bits of a training depend on."""
        return {
            "device": str(self.runtime.device),
            "precision": self.runtime.precision,
            "processes": self.runtime.world_size,
            **outputs.provenance(self.runtime.device),
        }

    @property
    def alone(self) -> Session:
        """The same without the other processes, for what rank 0 does by itself."""
        return self._replace(runtime=replace(self.runtime, rank=0, world_size=1))

    @property
    def note(self) -> str:
        """What every plot's title ends with: nothing, or that the data is the stand-in."""
        return " (synthetic data)" if self.dataset == "synthetic" else ""


def begin(config: Config) -> Session:
    """Finds the device and loads the images. Nothing is written but a download.

    Raises:
        InputError: For settings that do not fit the machine or the data.
    """
    if config.tensorboard:
        events.require()
    run = runtime.start(config.device, config.precision, deterministic=config.deterministic)
    on_device = config.augment_on == "device"
    if on_device and config.workers not in ("auto", 0):
        raise InputError(f"--workers {config.workers}: must be auto or 0 with --augment-on device, which needs none")
    workers = config.workers
    if workers == "auto":
        workers = 0 if on_device else runtime.default_workers(run.device)
    require_sockets(workers)
    if run.rank:
        run.meet()  # rank 0 comes first, and fetches what is not there
    train, evaluation, dataset = data.load(config.dataset, config.data_dir)
    if not run.rank:
        run.meet()
    split = "test"
    if config.val_size:
        train, evaluation = data.hold_out(train, config.val_size)
        split = "val"
    if config.limit:
        train, evaluation = train.take(slice(config.limit)), evaluation.take(slice(config.limit // 5))
    return with_recipe(Session(config, run, workers, dataset, train, evaluation, split), config)


def with_recipe(session: Session, config: Config) -> Session:
    """The same machine and images with other settings of training and augmentation.

    Raises:
        InputError: For settings that do not fit them.
    """
    images, processes = len(session.train.labels), session.runtime.world_size
    for name in ONLY_ON_CPU:
        if config.augment_on == "device" and getattr(config, name):
            raise InputError(f"{flag(name)} {getattr(config, name)}: must be 0 with --augment-on device")
    if config.batch_size > images:
        raise InputError(f"--batch-size {config.batch_size}: must be at most the number of training images, {images}")
    ragged = images % config.batch_size
    if config.batch_size % processes or ragged % processes:
        raise InputError(
            f"--batch-size {config.batch_size}: must be a multiple of the {processes} processes, and so must the "
            f"{ragged} images that an epoch of {images} leaves for its last batch"
        )
    return session._replace(config=config)


def network(session: Session) -> nn.Module:
    """The network with the seed's weights, on the device."""
    config, images = session.config, session.train.images
    torch.manual_seed(config.seed)
    built = model.build_network(
        MEAN,
        STD,
        classes=len(session.train.classes),
        logit_scale=config.logit_scale,
        norm_momentum=config.norm_momentum,
    )
    if config.dirac_init:
        initialisation.dirac(built)
    if config.whitening_init:
        initialisation.whiten(built, built.normalize(torch.from_numpy(images[:WHITENED])))
    return built.to(session.runtime.device)


def optimizer(session: Session, network: nn.Module, lr: float) -> torch.optim.Adam:
    """Adam for the network's parameters."""
    config = session.config
    return optim.adam(
        network,
        lr=lr,
        betas=config.optimizer_betas,
        weight_decay=config.weight_decay,
        bias_lr_factor=config.bias_lr_factor,
    )


def criterion(session: Session) -> nn.Module:
    """Cross entropy."""
    return nn.CrossEntropyLoss(label_smoothing=session.config.label_smoothing)


def schedule(session: Session, max_lr: float) -> dict[str, float | int | str]:
    """The keyword arguments of `optim.one_cycle`."""
    config = session.config
    return {
        "max_lr": max_lr,
        "total_steps": config.epochs * session.steps_per_epoch,
        "pct_start": config.pct_start,
        "anneal": config.anneal,
        "div_factor": config.div_factor,
        "final_div_factor": config.final_div_factor,
        "peak_beta1": config.peak_beta1,
    }


def planned_lrs(session: Session, max_lr: float) -> list[float]:
    """The learning rate of every step."""
    return optim.planned_lrs(**schedule(session, max_lr))


def training_state(session: Session, max_lr: float) -> TrainingState:
    """A training that is about to begin."""
    model = network(session)
    adam = optimizer(session, model, max_lr)
    decay = session.config.ema_decay
    average = optim.moving_average(model, decay) if decay else None
    return TrainingState(model, adam, optim.one_cycle(adam, **schedule(session, max_lr)), session.runtime, average)


def mix(session: Session, epochs: int) -> Mixing:
    """What mixes the batches of a training of so many epochs."""
    config = session.config
    if config.mix == "none":
        return unmixed
    first, end = (round(share * epochs) for share in (config.mix_from, config.mix_until))
    return Mix(config.mix, alpha=config.mix_alpha, classes=len(session.train.classes), epochs=range(first, end))


def loader(session: Session, epochs: int, first_step: int = 0) -> DataLoader:
    """The augmented batches of ``epochs`` epochs from ``first_step`` on, or this process's part of them."""
    config, run = session.config, session.runtime
    names = ("crop_padding", "flip", "cutout", "cutout_probability", "rotation", "color_jitter")
    augmentation = {name: getattr(config, name) for name in names} | {"mix": mix(session, epochs)}
    on_device = config.augment_on == "device"
    batches = (
        DeviceBatches(session.train, run.device, **augmentation)
        if on_device
        else AugmentedBatches(session.train, **augmentation)
    )
    plans = Plans(
        len(session.train.labels),
        config.batch_size,
        epochs,
        config.seed,
        first_step=first_step,
        rank=run.rank,
        world_size=run.world_size,
    )
    return train_loader(batches, plans, workers=session.workers, pin_memory=run.device.type == "cuda" and not on_device)


def samples(session: Session) -> tuple[np.ndarray, list[str]]:
    """The first batch as it is augmented, uint8 ``[B, 32, 32, 3]``, and the classes of each image."""
    first = loader(session.alone, session.config.epochs)
    images, targets = first.dataset[next(iter(first.sampler))]
    classes = session.train.classes
    if targets.ndim == 1:
        return images.cpu().numpy(), [classes[label] for label in targets]
    shares = [sorted(zip(row.tolist(), classes, strict=True), reverse=True)[:2] for row in targets]
    return images.cpu().numpy(), [" + ".join(name for share, name in two if share > 0) for two in shares]


def evaluation_tensors(session: Session) -> tuple[torch.Tensor, torch.Tensor]:
    """The evaluation images, uint8 ``[N, 32, 32, 3]``, and labels, int64 ``[N]``, on the device."""
    images, labels, _ = session.evaluation
    return torch.from_numpy(images).to(session.runtime.device), torch.from_numpy(labels).to(session.runtime.device)
