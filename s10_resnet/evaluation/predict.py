"""What a trained network takes pictures for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from s10_resnet.errors import InputError
from s10_resnet.evaluation import gradcam
from s10_resnet.evaluation import images as pictures
from s10_resnet.evaluation.images import Gallery
from s10_resnet.evaluation.tta import Averaged
from s10_resnet.models.pretrained import Trained, load_model
from s10_resnet.options import Prediction
from s10_resnet.reporting import plots
from s10_resnet.training import loop as engine
from s10_resnet.utils import console as terminal
from s10_resnet.utils import signals

TOP = 3
PLOTTED = 16  # pictures, or the plot would be longer than a screen is high
PLOTTED_PIXELS = 256  # along a side


def predict(model: Trained, images: np.ndarray | Sequence[Path | str], tta: str = "none") -> np.ndarray:
    """Probabilities of the classes.

    >>> from s10_resnet import load_model, predict
    >>> model = load_model(checkpoint)
    >>> probabilities = predict(model, images)  # uint8 [N, 32, 32, 3], or a list of files
    >>> probabilities.shape
    (4, 10)

    Args:
        model: Of `load_model`.
        images: uint8 ``[N, 32, 32, 3]``, or picture files, which are read as `s10_resnet.evaluation.images.read` says.
        tta: Views to average the logits over: ``none``, ``flip`` or ``six``; see `s10_resnet.evaluation.tta`.

    Returns:
        float32 ``[N, C]`` in the order of ``model.classes``.

    Raises:
        PictureError: If a file cannot be read as a picture.
        ValueError: For an array of another shape or type.
    """
    if not isinstance(images, np.ndarray):
        images = np.stack([pictures.read(Path(path)) for path in images])
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (pictures.SIZE, pictures.SIZE, 3):
        raise ValueError(f"images must be uint8 [N, 32, 32, 3], not {images.dtype} {list(images.shape)}")
    tensor = torch.from_numpy(images).to(model.runtime.device)
    logits = engine.predict(Averaged(model.network, tta), tensor, model.runtime)
    return logits.softmax(1).cpu().numpy()


@signals.heeded()
def show(options: Prediction) -> np.ndarray:
    """Prints what pictures are taken for, as a table or as JSON, and draws it if that is asked for.

    Returns:
        float32 ``[N, C]``, the probabilities.

    Raises:
        InputError: For a checkpoint that is none, or if a picture cannot be read; the others are shown first.
    """
    if options.plot:
        _check_plot(options.plot)
    model = load_model(options.checkpoint, options.device)
    paths = pictures.find(options.images)
    gallery = pictures.read_all(terminal.bar(paths, len(paths), "reading", "picture"))
    if len(paths) == len(gallery.problems) == 1:
        raise InputError(f"IMAGE {gallery.problems[0]}")
    for problem in gallery.problems.values():
        terminal.complain(problem)
    if not len(gallery.images):
        raise InputError(f"IMAGE {options.images[0]}: must be a picture that can be read; none of {len(paths):,} can")
    probabilities = predict(model, gallery.images, options.tta)
    tops = {place: _top(model, row) for place, row in zip(gallery.places.tolist(), probabilities, strict=True)}
    if options.json:
        print(
            json.dumps([_record(path, tops.get(i), gallery.problems.get(i)) for i, path in enumerate(paths)], indent=2)
        )
    else:
        _print_table([(paths[place], top) for place, top in tops.items()])
    if options.plot:
        _draw(options.plot, model, paths, gallery, tops)
    if gallery.problems:
        raise InputError(f"IMAGE: {len(gallery.problems):,} of {len(paths):,} cannot be read")
    return probabilities


def _top(model: Trained, probabilities: np.ndarray) -> list[tuple[str, float]]:
    order = np.argsort(-probabilities, kind="stable")[:TOP]
    return [(model.classes[label], float(probabilities[label])) for label in order]


def _record(path: Path, top: list[tuple[str, float]] | None, problem: str | None) -> dict[str, Any]:
    if top is None:
        return {"image": str(path), "error": problem}
    return {"image": str(path), "predictions": [{"class": name, "probability": share} for name, share in top]}


def _print_table(rows: list[tuple[Path, list[tuple[str, float]]]]) -> None:
    first = max(len(str(path)) for path, _ in rows)
    across = max(len(name) for _, top in rows for name, _ in top)
    for path, top in rows:
        cells = "   ".join(f"{name:<{across}} {share:7.2%}" for name, share in top)
        terminal.say(f"{path!s:<{first}}   {cells}")


def _check_plot(path: Path) -> None:
    """Before anything is computed: a plot that cannot be written would be told of last."""
    if path.suffix.lower() != ".png" or path.is_dir() or not path.parent.is_dir():
        raise InputError(f"--plot {path}: must be a name ending in .png, in a folder that exists")


def _draw(
    path: Path, model: Trained, paths: list[Path], gallery: Gallery, tops: dict[int, list[tuple[str, float]]]
) -> None:
    shown = list(tops)[:PLOTTED]
    device = model.runtime.device
    images = torch.from_numpy(gallery.images[:PLOTTED]).to(device)
    classes = torch.tensor([model.classes.index(tops[place][0][0]) for place in shown], device=device)
    figure = plots.predictions(
        [pictures.read(paths[place], PLOTTED_PIXELS) for place in shown],
        gradcam.heat_maps(model.network, images, classes).cpu().numpy(),
        [paths[place].name for place in shown],
        [tops[place] for place in shown],
        title=f"The first {PLOTTED} of {len(tops):,} pictures" if len(tops) > PLOTTED else "",
    )
    plots.save(figure, path)
    terminal.complain(f"see {path}")  # on stderr: stdout is the table, or JSON
