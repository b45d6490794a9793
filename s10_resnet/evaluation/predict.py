"""Predictions for images."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from s10_resnet.config import PredictConfig, printable
from s10_resnet.errors import InputError
from s10_resnet.evaluation.gradcam import grad_cam
from s10_resnet.evaluation.images import IMAGE_SIZE, find_images, read_image, read_images, to_array
from s10_resnet.evaluation.inference import predict_logits
from s10_resnet.evaluation.tta import TTA_VIEWS, TTAModel
from s10_resnet.models.pretrained import LoadedModel, load_model
from s10_resnet.reporting import plots
from s10_resnet.utils import signals
from s10_resnet.utils.console import format_table, logger

TOP_K = 3
MAX_PLOTTED = 16  # images: more would be higher than a screen
PLOTTED_SIZE = 256  # pixels along a side

ImageLike = str | os.PathLike | Image.Image | np.ndarray


def predict(model: LoadedModel, images: ImageLike | Sequence[ImageLike], tta: str = "none") -> np.ndarray:
    """Returns the class probabilities of images.

    >>> from s10_resnet import load_model, predict
    >>> model = load_model(checkpoint)
    >>> probabilities = predict(model, images)  # an image file, a PIL image, an array, or a list of these
    >>> probabilities.shape
    (4, 10)

    Args:
        model: A model of `s10_resnet.load_model`.
        images: An image or a list of images. An image is the path of an image file (see
            `s10_resnet.evaluation.images.read_image`), a PIL image, or an array, uint8 ``[32, 32, 3]``; an array may
            also hold several, uint8 ``[N, 32, 32, 3]``.
        tta: Test-time augmentation, ``none``, ``flip`` or ``flip_shift``: see `s10_resnet.evaluation.tta.TTAModel`.

    Returns:
        float32 ``[N, C]`` in the order of ``model.classes``.

    Raises:
        InputError: For an image file that cannot be read, an array of another shape or type, no images at all, an
            unknown ``tta``, or a model that `load_model` has not returned.
    """
    if not isinstance(model, LoadedModel):
        raise InputError(f"model: must be a model of load_model, not {type(model).__name__}")
    if not isinstance(tta, str) or tta not in TTA_VIEWS:
        raise InputError(f"tta {printable(repr(tta))}: must be one of {', '.join(TTA_VIEWS)}")
    batches = [_to_batch(image) for image in (images if isinstance(images, list | tuple) else [images])]
    if not sum(map(len, batches)):
        raise InputError("images: must hold at least one image")
    tensor = torch.from_numpy(np.concatenate(batches)).to(model.runtime.device)
    logits = predict_logits(TTAModel(model, tta), tensor, model.runtime)
    return logits.softmax(1).cpu().numpy()


@signals.graceful_shutdown()
def predict_images(config: PredictConfig) -> np.ndarray:
    """Prints the most probable classes of image files as a table or as JSON, and plots them if asked for.

    Returns:
        The class probabilities, float32 ``[N, C]``.

    Raises:
        InputError: For a checkpoint that is not a weights file, or images that cannot be read; the others are printed
            first.
    """
    plot = config.plot
    if plot and (plot.suffix.lower() != ".png" or plot.is_dir() or not plot.parent.is_dir()):
        shown = printable(str(plot), 1000)
        raise InputError(f"--plot {shown}: must be a name ending in .png, in a folder that exists")
    model = load_model(config.checkpoint, config.device)
    paths = find_images(config.images)
    images, errors = read_images(paths, "IMAGE")
    if model.dataset == "synthetic":
        logger.warning(
            "these weights were trained on the synthetic data set of drawn shapes: they cannot classify photographs"
        )
    probabilities = predict(model, images, config.tta)
    readable = [path for path in paths if path not in errors]
    tops = {path: _top_k(model, row) for path, row in zip(readable, probabilities, strict=True)}
    if config.json_:
        print(json.dumps([_to_record(path, tops.get(path, []), errors.get(path)) for path in paths], indent=2))
    else:
        rows = [[printable(str(path), 1000), *(f"{c} {p:.2%}" for c, p in top)] for path, top in tops.items()]
        logger.info("\n".join(format_table(rows)))
    if plot:
        _plot(plot, model, images, tops)
        if not config.json_:  # whose reader expects nothing else on stdout
            logger.info(f"plot: {printable(str(plot), 1000)}")
    if errors:
        raise InputError(f"IMAGE: {len(errors):,} of {len(paths):,} images cannot be read")
    return probabilities


def _to_batch(image: Any) -> np.ndarray:
    """Returns uint8 ``[N, 32, 32, 3]``."""
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image))[None]
    if isinstance(image, Image.Image):
        try:
            return to_array(image)[None]
        except Exception as error:  # it may be closed, or of a damaged file
            reason = printable(str(error) or repr(error), 200)
            raise InputError(f"images: a PIL image cannot be read ({reason})") from None
    given = type(image).__name__
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim in (3, 4) and image.shape[-3:] == (IMAGE_SIZE, IMAGE_SIZE, 3):
            return image.reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 3)
        given = f"{image.dtype} {list(image.shape)}"
    raise InputError(
        f"images: must be paths, PIL images, or arrays of uint8 [32, 32, 3] or [N, 32, 32, 3], not {given}"
    )


def _top_k(model: LoadedModel, probabilities: np.ndarray) -> list[tuple[str, float]]:
    """Returns the most probable classes and their probabilities, the most probable first."""
    order = np.argsort(-probabilities, kind="stable")[:TOP_K]
    return [(model.classes[label], float(probabilities[label])) for label in order]


def _to_record(path: Path, top: list[tuple[str, float]], error: str | None) -> dict[str, Any]:
    if error:
        return {"image": str(path), "error": error}
    return {"image": str(path), "predictions": [{"class": name, "probability": value} for name, value in top]}


def _plot(path: Path, model: LoadedModel, images: np.ndarray, tops: dict[Path, list[tuple[str, float]]]) -> None:
    paths, shown = list(tops)[:MAX_PLOTTED], list(tops.values())[:MAX_PLOTTED]
    device = model.runtime.device
    classes = torch.tensor([model.classes.index(top[0][0]) for top in shown], device=device)
    figure = plots.plot_predictions(
        [read_image(path, PLOTTED_SIZE) for path in paths],
        grad_cam(model.network, torch.from_numpy(images[:MAX_PLOTTED]).to(device), classes).cpu().numpy(),
        [printable(path.name) for path in paths],
        shown,
        title=f"The first {MAX_PLOTTED} of {len(tops):,} images" if len(tops) > MAX_PLOTTED else "",
    )
    plots.save(figure, path)
