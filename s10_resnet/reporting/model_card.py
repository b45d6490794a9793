"""The model card of a run: what its weights are, how they were trained, and their limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from s10_resnet.reporting.formatting import DATASET_NAMES, escape_markdown, load_template, percent, run_name
from s10_resnet.utils.io import atomic_write

FLIPS = {
    "random": "horizontal flip with probability 0.5",
    "alternating": "horizontal flip of every image in every second epoch",
}


def write_model_card(path: Path, summary: Mapping[str, Any], config: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Writes a Markdown file that begins with the metadata the Hugging Face Hub reads, atomically.

    ``summary`` and ``config`` are the contents of ``summary.json`` and ``config.json``.
    """
    text = load_template("model_card.md", finalize=_escape).render(
        name=run_name(path),
        dataset=DATASET_NAMES[summary["dataset"]],
        summary=summary,
        classes=classes,
        recipe=_recipe(summary, config),
    )
    atomic_write(path, text.encode())


def _escape(value: Any) -> Any:
    return escape_markdown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _recipe(summary: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    cutout = config["cutout_size"]
    augmentation = [
        f"random crop after reflection padding of {config['crop_padding']} pixels" if config["crop_padding"] else "",
        FLIPS.get(config["flip"], ""),
        f"cutout of {cutout} x {cutout} pixels" if cutout else "",
    ]
    initialization = [
        "Dirac initialization of the convolutions but the first" if config["dirac_init"] else "",
        "whitening initialization of the first convolution" if config["whitening_init"] else "",
    ]
    schedule = f"one cycle ({config['anneal_strategy']}), peak {summary['max_lr']:.4g}"
    betas = " and ".join(map(str, config["betas"]))
    return {
        "epochs": f"{summary['epochs']} of {config['epochs']}",
        "training images": f"{summary['train_images']:,}",
        "batch size": config["batch_size"],
        "optimizer": f"Adam, betas {betas}, decoupled weight decay {config['weight_decay']}",
        "learning rate": f"{schedule} after {percent(config['pct_start'], 0)} of the steps",
        "loss": f"cross entropy, label smoothing {config['label_smoothing']}",
        "augmentation": ", ".join(filter(None, augmentation)) or "none",
        "initialization": " and ".join(filter(None, initialization)) or "PyTorch's default",
        "precision": summary["precision"],
        "seed": summary["seed"],
    }
