"""What settings resolve to on this machine: device, images, and the parts of a training built from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from s10_resnet.config import RunConfig, TrainConfig
from s10_resnet.data.dataset import Split, load_dataset, train_val_split
from s10_resnet.data.loader import (
    AugmentedBatches,
    DeviceAugmentedBatches,
    StatelessBatchSampler,
    check_worker_sockets,
    create_loader,
)
from s10_resnet.data.transforms import MEAN, STD
from s10_resnet.errors import InputError
from s10_resnet.models.init import dirac_init_, whitening_init_
from s10_resnet.models.resnet import build_model
from s10_resnet.training.optim import create_optimizer, create_scheduler
from s10_resnet.training.state import TrainingState
from s10_resnet.utils.environment import collect_environment
from s10_resnet.utils.runtime import Runtime, default_num_workers, init_runtime

C = TypeVar("C", bound=RunConfig)

WHITENING_IMAGES = 2000  # that the first convolution is computed from: 1.8 million patches


@dataclass(frozen=True)
class Setup(Generic[C]):
    """Settings, and what they resolve to on this machine."""

    config: C  # as it was given
    runtime: Runtime
    augment_on: str  # cpu or device
    workers: int
    dataset: str  # that was loaded: cifar10 or synthetic
    train: Split
    eval: Split  # the images to evaluate on
    eval_split: str  # test, or val if they were held out of the training images

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return math.ceil(len(self.train.labels) / self.config.batch_size)

    @property
    def environment(self) -> dict[str, Any]:
        """What the result depends on besides the settings."""
        return {
            "device": str(self.runtime.device),
            "precision": self.runtime.precision,
            "world_size": self.runtime.world_size,
            "augment_on": self.augment_on,
            **collect_environment(self.runtime.device),
        }

    @property
    def description(self) -> str:
        """Data, device, precision and workers in one line."""
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        return (
            f"{self.dataset}: {len(self.train.labels):,} training and {len(self.eval.labels):,} {self.eval_split} "
            f"images; {self.runtime.device}, {self.runtime.precision}, {workers}"
        )

    def single_process(self) -> Setup[C]:
        """Returns this setup for rank 0 alone."""
        if self.runtime.world_size == 1:
            return self
        return replace(self, runtime=replace(self.runtime, rank=0, world_size=1))

    def with_config(self, config: C) -> Setup[C]:
        """Returns the same data and device with other settings of training and augmentation.

        Raises:
            InputError: For settings that do not fit them.
        """
        images, world_size = len(self.train.labels), self.runtime.world_size
        if config.batch_size > images:
            raise InputError(
                f"--batch-size {config.batch_size}: must be at most the number of training images, {images}"
            )
        if isinstance(config, TrainConfig) and config.epochs == 1 and config.batch_size == images:
            raise InputError(
                f"--batch-size {config.batch_size}: must be below the number of training images, {images}, with "
                "--epochs 1: a schedule needs two steps"
            )
        remainder = images % config.batch_size
        if config.batch_size % world_size or remainder % world_size:
            raise InputError(
                f"--batch-size {config.batch_size}: must be a multiple of the {world_size} processes, and so must the "
                f"{remainder} images of the last batch of an epoch of {images} images"
            )
        return replace(self, config=config)

    def build_model(self) -> nn.Module:
        """Returns the network with the initial weights of the seed, on the device."""
        config = self.config
        torch.manual_seed(config.seed)
        model = build_model(MEAN, STD, num_classes=len(self.train.classes), logit_scale=config.logit_scale)
        if config.dirac_init:
            dirac_init_(model)
        if config.whitening_init:
            images = torch.from_numpy(self.train.images[:WHITENING_IMAGES])
            whitening_init_(model, model.get_submodule("normalize")(images))
        return model.to(self.runtime.device)

    def build_optimizer(self, model: nn.Module, lr: float) -> torch.optim.Adam:
        """Returns Adam for the network's parameters."""
        return create_optimizer(model, lr=lr, betas=self.config.betas, weight_decay=self.config.weight_decay)

    def build_criterion(self) -> nn.Module:
        """Returns the cross entropy."""
        return nn.CrossEntropyLoss(label_smoothing=self.config.label_smoothing)

    def build_state(self: Setup[TrainConfig], max_lr: float) -> TrainingState:
        """Returns the state before the first step of a training."""
        model = self.build_model()
        optimizer = self.build_optimizer(model, max_lr)
        scheduler = create_scheduler(optimizer, **self.schedule(max_lr))
        return TrainingState(model, optimizer, scheduler, self.runtime)

    def schedule(self: Setup[TrainConfig], max_lr: float) -> dict[str, Any]:
        """Returns the arguments of `create_scheduler`."""
        names = {"pct_start", "anneal_strategy", "div_factor", "final_div_factor"}
        total_steps = self.config.epochs * self.steps_per_epoch
        return {"max_lr": max_lr, "total_steps": total_steps, **self.config.model_dump(include=names)}

    @cached_property
    def batches(self) -> AugmentedBatches:
        """The training images, padded and, if they are augmented there, on the device."""
        options = self.config.model_dump(include={"crop_padding", "flip", "cutout_size"})
        if self.augment_on == "device":
            return DeviceAugmentedBatches(self.train, self.runtime.device, **options)
        return AugmentedBatches(self.train, **options)

    def build_loader(self, epochs: int, first_step: int = 0) -> DataLoader:
        """Returns the augmented batches of ``epochs`` epochs from ``first_step`` on: this process's part of each."""
        config, runtime = self.config, self.runtime
        sampler = StatelessBatchSampler(
            len(self.train.labels),
            config.batch_size,
            epochs,
            config.seed,
            first_step=first_step,
            rank=runtime.rank,
            world_size=runtime.world_size,
        )
        pin_memory = runtime.device.type == "cuda" and self.augment_on == "cpu"
        batch_size = config.batch_size // runtime.world_size
        return create_loader(self.batches, sampler, workers=self.workers, pin_memory=pin_memory, batch_size=batch_size)

    def first_batch(self) -> tuple[np.ndarray, list[str]]:
        """Returns the first augmented batch, uint8 ``[B, 32, 32, 3]``, and the class names of its images."""
        sampler = StatelessBatchSampler(len(self.train.labels), self.config.batch_size, 1, self.config.seed)
        images, labels = self.batches[next(iter(sampler))]
        return images.cpu().numpy(), [self.train.classes[label] for label in labels]

    def eval_tensors(self) -> tuple[Tensor, Tensor]:
        """Returns the evaluation images, uint8 ``[N, 32, 32, 3]``, and labels, int64 ``[N]``, on the device."""
        images, labels, _ = self.eval
        return torch.from_numpy(images).to(self.runtime.device), torch.from_numpy(labels).to(self.runtime.device)


def create_setup(config: C) -> Setup[C]:
    """Selects the device and loads the data. Writes nothing but a download.

    Raises:
        InputError: For settings that do not fit the machine or the data.
    """
    runtime = init_runtime(config.device, config.precision, deterministic=config.deterministic)
    augment_on = _resolve_augment_on(config, runtime)
    workers = config.workers
    if augment_on == "device" and workers not in ("auto", 0):
        raise InputError(f"--workers {workers}: must be auto or 0 with --augment-on device, which needs none")
    if workers == "auto":
        workers = 0 if augment_on == "device" else default_num_workers(runtime.device)
    check_worker_sockets(workers)
    if runtime.rank:
        runtime.barrier()  # rank 0 is first, and downloads what is missing
    train, evaluation, dataset = load_dataset(config.dataset, config.data_dir)
    if not runtime.rank:
        runtime.barrier()
    eval_split = "test"
    if config.val_size:
        train, evaluation = train_val_split(train, config.val_size)
        eval_split = "val"
    if config.max_train_samples:
        train = train.subset(slice(config.max_train_samples))
        evaluation = evaluation.subset(slice(config.max_train_samples // 5))
    setup = Setup(config, runtime, augment_on, workers, dataset, train, evaluation, eval_split)
    return setup.with_config(config)


def _resolve_augment_on(config: RunConfig, runtime: Runtime) -> str:
    """``auto``: whole batches on a CUDA device, unless workers are asked for; else on the CPU."""
    if config.augment_on != "auto":
        return config.augment_on
    on_device = runtime.device.type == "cuda" and config.workers in ("auto", 0)
    return "device" if on_device else "cpu"
