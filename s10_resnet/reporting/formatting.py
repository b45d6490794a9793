"""Texts shared by the figures, the HTML report and the model card, and their templates."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s10_resnet.utils.console import escape_controls

if TYPE_CHECKING:
    from jinja2 import Template

DATASET_NAMES = {"cifar10": "CIFAR-10", "synthetic": "the synthetic data set"}
MISSING = "\N{EN DASH}"


def run_name(path: Path) -> str:
    """Returns the name of the run that a file belongs to: that of its folder, which may have been given as ``.``."""
    return path.resolve().parent.name


def title_suffix(dataset: str) -> str:
    """Returns what titles of figures end with, so that synthetic results are not mistaken for those of CIFAR-10."""
    return " (synthetic data)" if dataset == "synthetic" else ""


def percent(fraction: float, digits: int = 2) -> str:
    """Formats a fraction of 1, such as ``94.33 %``; NaN and infinity become a dash."""
    return f"{100 * fraction:.{digits}f} %" if math.isfinite(fraction) else MISSING


def duration(seconds: float) -> str:
    """Formats a duration in its two largest units, such as ``1 h 07 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02} min"


def plural(count: int, noun: str) -> str:
    """Formats a number of things, such as ``1 image`` or ``2,000 images``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def load_template(name: str, **options: Any) -> Template:
    """Loads a file of ``templates/``, with further options of `jinja2.Environment`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # not before the first step of a training

    environment = Environment(
        loader=PackageLoader("s10_resnet.reporting"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    environment.filters |= {"percent": percent, "duration": duration, "plural": plural}
    return environment.get_template(name)


def escape_markdown(text: str) -> str:
    """Returns Markdown that renders as the text itself, in one line."""
    return re.sub(r"([\\`*_\[\]<>|&~$#])", r"\\\1", escape_controls(" ".join(text.split())))
