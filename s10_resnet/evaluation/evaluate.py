"""Evaluation of trained weights on their data set or on a folder of image files."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s10_resnet.config import EvaluateConfig
from s10_resnet.data import dataset
from s10_resnet.errors import InputError
from s10_resnet.evaluation.images import find_labeled_images, read_images
from s10_resnet.evaluation.inference import predict_logits
from s10_resnet.evaluation.metrics import compute_metrics
from s10_resnet.evaluation.tta import TTAModel
from s10_resnet.models.pretrained import LoadedModel, load_model, weights_file
from s10_resnet.reporting import plots
from s10_resnet.reporting.formatting import title_suffix
from s10_resnet.utils import signals
from s10_resnet.utils.console import logger, warn_on_error
from s10_resnet.utils.environment import collect_environment
from s10_resnet.utils.io import write_json
from s10_resnet.utils.runtime import init_runtime


@signals.graceful_shutdown()
def evaluate_checkpoint(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluates a checkpoint, writes a JSON file and a plot of the confusion matrix beside it, and returns the content.

    It has what was evaluated, the metrics of `compute_metrics`, ``accuracy_without_tta``, the files that could not be
    read, and the environment.

    Raises:
        InputError: For a checkpoint that is not a weights file, a data set that is not available, or a folder without
            labeled images.
    """
    init_runtime(config.device, config.precision)  # sets up cuDNN and the memory allocator, which `load_model` leaves
    model = load_model(config.checkpoint, config.device, config.precision)
    images, labels, errors = _load_images(config, model)
    described = f"{'labeled' if config.images else config.split} images (n = {len(labels):,})"
    logger.info(f"{weights_file(config.checkpoint)}, epoch {model.epoch}")
    runtime = model.runtime
    logger.info(f"{described}, test-time augmentation {config.tta}; {runtime.device}, {runtime.precision}")
    tensor = torch.from_numpy(images).to(model.runtime.device)
    logits = {tta: predict_logits(TTAModel(model, tta), tensor, model.runtime).cpu() for tta in {"none", config.tta}}
    content = {
        "checkpoint": str(weights_file(config.checkpoint)),
        "epoch": model.epoch,
        "dataset": str(config.images.resolve()) if config.images else model.dataset,
        "split": None if config.images else config.split,
        "tta": config.tta,
        "accuracy_without_tta": (logits["none"].argmax(1) == labels).double().mean().item(),
        **compute_metrics(logits[config.tta], labels, model.classes),
        "errors": errors,
        "device": str(model.runtime.device),
        "precision": model.runtime.precision,
        **collect_environment(model.runtime.device),
    }
    _log(content)
    path = _result_path(config)
    write_json(path, content)
    title = f"Confusion matrix of {described}, test-time augmentation {config.tta}{title_suffix(model.dataset)}"
    with warn_on_error("a plot could not be drawn"):
        figure = plots.plot_confusion_matrix(np.array(content["confusion_matrix"]), model.classes, title=title)
        plots.save(figure, path.with_suffix(".png"))
    logger.info(f"results: {path} and {path.with_suffix('.png').name}")
    return content


def _load_images(config: EvaluateConfig, model: LoadedModel) -> tuple[np.ndarray, Tensor, list[str]]:
    """Returns images, labels, and messages about files that could not be read."""
    if config.images:
        paths, labels = find_labeled_images(config.images, model.classes)
        images, errors = read_images(paths, f"--images {config.images}")
        labels = [label for path, label in zip(paths, labels, strict=True) if path not in errors]
        return images, torch.tensor(labels), [*errors.values()]
    val_size = model.config.get("val_size", 0)
    if config.split == "val" and not val_size:
        raise InputError("--split val: must be test, since this run held no images out")
    train, test, _ = dataset.load_dataset(model.dataset, config.data_dir)
    split = dataset.train_val_split(train, val_size)[1] if config.split == "val" else test
    if split.classes != model.classes:
        raise InputError(f"{config.checkpoint}: must have the classes of {model.dataset}, and has others")
    return split.images, torch.from_numpy(split.labels), []


def _log(content: dict[str, Any]) -> None:
    if content["errors"]:
        logger.info(f"images that cannot be read, and are not counted: {len(content['errors']):,}")
    without = "" if content["tta"] == "none" else f" (without TTA {content['accuracy_without_tta']:.2%})"
    logger.info(
        f"accuracy {content['accuracy']:.2%}{without}, loss {content['loss']:.4f}, "
        f"expected calibration error {content['expected_calibration_error']:.2%}"
    )
    width = max(map(len, content["per_class"]))
    for name, row in content["per_class"].items():
        accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.2%}"
        logger.info(f"  {name:<{width}}  {accuracy:>7}  of {row['images']:,}")


def _result_path(config: EvaluateConfig) -> Path:
    """Returns the path of the JSON file, which differs by checkpoint, split or folder, and test-time augmentation."""
    checkpoint = weights_file(config.checkpoint)
    evaluated: str = config.split
    if config.images:
        folder = config.images.resolve()
        name = re.sub(r"[^A-Za-z0-9._-]", "_", folder.name)[:100]
        evaluated = f"images-{name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}"
    tta = "" if config.tta == "none" else f"-{config.tta}"
    return checkpoint.with_name(f"evaluation-{checkpoint.stem}-{evaluated}{tta}.json")
