"""How good a trained network is, on the images of its data set or on a folder of pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from s10_resnet.data import dataset as data
from s10_resnet.errors import InputError
from s10_resnet.evaluation import images as pictures
from s10_resnet.evaluation import metrics
from s10_resnet.evaluation.tta import VIEWS, Averaged
from s10_resnet.models.pretrained import Trained, load_model
from s10_resnet.options import Evaluation
from s10_resnet.reporting import plots
from s10_resnet.training import loop as engine
from s10_resnet.utils import console as terminal
from s10_resnet.utils import outputs, signals
from s10_resnet.utils.runtime import Runtime


@signals.heeded()
def evaluate(options: Evaluation) -> dict[str, Any]:
    """Evaluates a checkpoint; leaves a JSON file and a picture of the confusion matrix beside it.

    Returns:
        The content of the JSON file: what was evaluated, all of `s10_resnet.evaluation.metrics.measure`,
        ``plain_accuracy`` (without test-time augmentation), the files that could not be read, and the environment.

    Raises:
        InputError: For a file that is no weights, a data set that is not there, or a folder without labelled pictures.
    """
    trained = load_model(options.checkpoint, options.device, options.precision)
    images, labels, unreadable = _labelled_images(options, trained)
    what = "pictures" if options.images else f"{options.split} images"
    plain = _logits(trained, images, "none")
    logits = plain if options.tta == "none" else _logits(trained, images, options.tta)
    measured = metrics.measure(logits, labels, trained.classes)
    content = {
        "checkpoint": str(options.checkpoint),
        "epoch": trained.epoch,
        "dataset": str(options.images) if options.images else trained.dataset,
        "split": None if options.images else options.split,
        "tta": options.tta,
        "plain_accuracy": (plain.argmax(1) == labels).double().mean().item(),
        **measured,
        "unreadable": unreadable,
        "device": str(trained.runtime.device),
        "precision": trained.runtime.precision,
        **outputs.provenance(trained.runtime.device),
    }
    _say(content, trained, what)
    _write(options, content, trained, what)
    return content


def accuracies(network: nn.Module, images: Tensor, labels: Tensor, runtime: Runtime) -> dict[str, float]:
    """Accuracy with each kind of views, as fractions of 1, by ``accuracy_none``, ``accuracy_flip`` and so on.

    Args:
        network: From uint8 ``[B, 32, 32, 3]`` to logits ``[B, C]``.
        images: uint8 ``[N, 32, 32, 3]``, on the network's device.
        labels: int64 ``[N]``, there, too.
        runtime: Device and number format.
    """
    predicted = {views: engine.predict(Averaged(network, views), images, runtime).argmax(1) for views in VIEWS}
    return {f"accuracy_{views}": (of_views == labels).double().mean().item() for views, of_views in predicted.items()}


def _labelled_images(options: Evaluation, trained: Trained) -> tuple[np.ndarray, torch.Tensor, list[str]]:
    if options.images:
        paths, labels = pictures.labelled(options.images, trained.classes)
        gallery = pictures.read_all(terminal.bar(paths, len(paths), "reading", "picture"))
        problems = [*gallery.problems.values()]
        for problem in problems:
            terminal.complain(problem)
        if not len(gallery.images):
            raise InputError(
                f"--images {options.images}: must hold pictures that can be read; none of {len(paths)} can"
            )
        return gallery.images, torch.tensor(labels)[gallery.places], problems
    held_out = trained.config.get("val_size")
    if options.split == "val" and not (isinstance(held_out, int) and held_out > 0):
        raise InputError("--split val: must be test, since this run held no images out")
    train, test, _ = data.load(trained.dataset, options.data_dir)
    split = data.hold_out(train, held_out)[1] if options.split == "val" else test
    if split.classes != trained.classes:
        raise InputError(f"{options.checkpoint}: must tell the classes of {trained.dataset} apart, and tells others")
    return split.images, torch.from_numpy(split.labels), []


def _logits(trained: Trained, images: np.ndarray, views: str) -> torch.Tensor:
    network = Averaged(trained.network, views)
    return engine.predict(network, torch.from_numpy(images).to(trained.runtime.device), trained.runtime).cpu()


def _say(content: dict[str, Any], trained: Trained, what: str) -> None:
    terminal.say(
        f"{content['checkpoint']}: {trained.dataset}, epoch {trained.epoch}; {content['images']:,} {what}, "
        f"test-time augmentation {content['tta']}; {content['device']}, {content['precision']}"
    )
    if content["unreadable"]:
        terminal.say(f"not counted, as they cannot be read: {len(content['unreadable']):,}")
    plain = "" if content["tta"] == "none" else f" (without augmentation {content['plain_accuracy']:.2%})"
    terminal.say(
        f"accuracy {content['accuracy']:.2%}{plain}, loss {content['loss']:.4f}, "
        f"expected calibration error {content['expected_calibration_error']:.2%}"
    )
    for name, row in content["per_class"].items():
        share = "-" if row["accuracy"] is None else f"{row['accuracy']:.2%}"
        terminal.say(f"  {name:<{max(map(len, trained.classes))}}  {share:>7}  of {row['images']:,}")


def _write(options: Evaluation, content: dict[str, Any], trained: Trained, what: str) -> None:
    words = [options.checkpoint.stem, "pictures" if options.images else options.split]
    words += [] if options.tta == "none" else [options.tta]
    path = options.checkpoint.with_name(f"evaluation-{'-'.join(words)}.json")
    outputs.write_json(path, content)
    note = " (synthetic data)" if trained.dataset == "synthetic" else ""
    title = f"Predictions on {content['images']:,} {what}{note}"
    matrix = np.array(content["confusion_matrix"])
    plots.save(plots.confusion(matrix, trained.classes, title=title), path.with_suffix(".png"))
    terminal.say(f"see {path} and {path.with_suffix('.png').name}")
