"""A run as one HTML page: its figures, tables and images in a single file without scripts or network access.

The curves are matplotlib's SVG of the same figures as in the run folder; they take their colors from the page's style
sheet, which has a light and a dark scheme. Jinja escapes whatever comes from outside.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup
from PIL import Image

from s10_resnet.config import TrainConfig
from s10_resnet.reporting import figures, plots
from s10_resnet.reporting.figures import RunData
from s10_resnet.reporting.formatting import DATASET_NAMES, MISSING, load_template, run_name
from s10_resnet.utils.io import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colors of the figures that the style sheet replaces; not those of the cells of the confusion matrix.
CSS_COLORS = {
    plots.BLACK.lower(): "currentColor",
    plots.BLUE.lower(): "var(--eval)",
    plots.VERMILLION.lower(): "var(--train)",
    plots.GREY.lower(): "var(--faint)",
    plots.PALE.lower(): "var(--faint)",
    plots.GRID.lower(): "var(--rule)",
}


def write_report(path: Path, run: RunData) -> None:
    """Writes the page, atomically, into a folder that exists."""
    summary, split, count = run.summary, run.summary["eval_split"], figures.GRID_IMAGES
    images, labels, classes = run.eval
    curves = plots.plot_curves(run.history, split=split, target=figures.TARGETS.get(summary["dataset"]))
    lr_schedule = plots.plot_lr_schedule(run.lrs, steps_per_epoch=run.steps_per_epoch)
    confusion = plots.plot_confusion_matrix(run.confusion_matrix, classes)
    text = load_template("report.html", autoescape=True).render(
        name=run_name(path),
        dataset=DATASET_NAMES[summary["dataset"]],
        summary=summary,
        config=run.config,
        split=split,
        curves=_inline_svg(curves, "curves", "loss and accuracy by epoch"),
        lr_schedule=_inline_svg(lr_schedule, "lr-schedule", "learning rate by step"),
        confusion=_inline_svg(confusion, "confusion", "confusion matrix"),
        epochs=run.history,
        error_count=len(run.errors),
        errors=[
            (_data_uri(images[i]), classes[run.predicted[i]], classes[labels[i]], run.probabilities[i].max())
            for i in run.errors[:count]
        ],
        samples=list(zip(map(_data_uri, run.samples[:count]), run.sample_labels[:count], strict=True)),
        settings=_settings(run.config),
        environment=_environment(summary),
    )
    atomic_write(path, text.encode(errors="replace"))  # a folder's name need not be Unicode


def _inline_svg(figure: Figure, key: str, label: str) -> Markup:
    """Returns a figure as an SVG element in the page's colors, with ids that begin with a key."""
    root = ElementTree.fromstring(plots.to_svg(figure))
    for element in root.iter():
        for style in element.findall("{*}style"):
            element.remove(style)  # it would apply to the whole page, whose style sheet has the same rules
        element.tag = element.tag.rpartition("}")[2]
        for name, value in list(element.attrib.items()):
            del element.attrib[name]
            if name == "style":
                value = re.sub("#[0-9a-f]{6}", lambda match: CSS_COLORS.get(match[0], match[0]), value)
                value = value.replace("stroke: #ffffff", "stroke: var(--paper)")
            elif name == "id":
                value = f"{key}-{value}"
            element.set(name.rpartition("}")[2], re.sub(r"^(url\()?#", rf"\g<0>{key}-", value))
    view_box = root.attrib["viewBox"]
    size = f"max-width: {float(view_box.split()[2]) * 4 / 3:.0f}px"  # a point is 4/3 pixels
    root.attrib = {"viewBox": view_box, "id": key, "style": size, "role": "img", "aria-label": label}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _settings(config: Mapping[str, Any]) -> dict[str, list[tuple[str, str, str, bool]]]:
    """Returns name, value, default and whether they differ of each setting, by group."""
    defaults = TrainConfig().to_json()
    groups: dict[str, list[tuple[str, str, str, bool]]] = {}
    for name, field in TrainConfig.model_fields.items():
        assert isinstance(field.json_schema_extra, dict)
        row = (name, _show(config[name]), _show(defaults[name]), config[name] != defaults[name])
        groups.setdefault(str(field.json_schema_extra["group"]), []).append(row)
    return groups


def _environment(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(name.replace("_", " "), summary[name]) for name in ("device", "precision", "workers", "world_size")]
    rows += [*summary["hardware"].items(), *summary["versions"].items(), ("git commit", summary["git_commit"])]
    return [(name, _show(value)) for name, value in rows]


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_show, value))
    return MISSING if value in (None, "") else str(value)


def _data_uri(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
