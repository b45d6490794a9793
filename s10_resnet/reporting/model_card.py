"""The model card of a run: what its weights are, how they came about, and what they are not good for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s10_resnet.utils.io import write_whole

DATA = {
    "cifar10": (
        "CIFAR-10",
        "[CIFAR-10](https://www.cs.toronto.edu/~kriz/cifar.html): 60,000 colour photographs of 32 x 32 pixels, "
        "collected by Alex Krizhevsky, Vinod Nair and Geoffrey Hinton. Its authors name no licence; they ask that "
        "*Learning Multiple Layers of Features from Tiny Images* (Alex Krizhevsky, 2009) be cited.",
    ),
    "synthetic": (
        "built-in synthetic images",
        "The drawn shapes that `s10_resnet` carries as a stand-in for CIFAR-10. **These weights know nothing of "
        "photographs.** The images are made by the package and fall under its MIT licence.",
    ),
}


FLIPS = {
    "random": "mirror image of half of the images",
    "alternating": "mirror image of every image in every second epoch",
    "none": "",
}


def write(path: Path, summary: Mapping[str, Any], config: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Writes a Markdown file with the metadata that the Hugging Face Hub reads at its head.

    Args:
        path: The file, ``MODEL_CARD.md`` in the run's folder.
        summary: As in the run's ``summary.json``.
        config: As in its ``config.json``.
        classes: What the logits stand for.
    """
    write_whole(path, text(path.parent.name, summary, config, classes).encode())


def text(name: str, summary: Mapping[str, Any], config: Mapping[str, Any], classes: Sequence[str]) -> str:
    """The card of a run called ``name``; see `write`."""
    split = "val" if "final_val_accuracy" in summary else "test"
    evaluated = "test" if split == "test" else "held-out training"
    dataset, origin = DATA[summary["dataset"]]
    accuracy, best = summary[f"final_{split}_accuracy"], summary[f"best_{split}_accuracy"]
    hardware = summary["hardware"]
    betas = " and ".join(map(str, config["optimizer_betas"]))
    augmentation = [
        f"random crop after {config['crop_padding']} pixels of reflection" if config["crop_padding"] else "",
        FLIPS[config["flip"]],
        f"rotation by up to {config['rotation']:g} degrees" if config["rotation"] else "",
        f"brightness, contrast and saturation by up to {config['color_jitter']:.0%}" if config["color_jitter"] else "",
        f"cutout of {config['cutout']} x {config['cutout']} pixels" if config["cutout"] else "",
    ]
    if config["mix"] != "none":
        when = f"from {config['mix_from']:.0%} to {config['mix_until']:.0%} of the epochs"
        augmentation.append(f"{config['mix']} (alpha {config['mix_alpha']:g}) {when}")
    initialisation = [
        "convolutions that pass their input on (Dirac)" if config["dirac_init"] else "",
        "a first convolution that whitens" if config["whitening_init"] else "",
    ]
    recipe = {
        "epochs": f"{summary['epochs']} of {config['epochs']}",
        "training images": f"{summary['train_images']:,}",
        "batch size": config["batch_size"],
        "optimizer": f"Adam, betas {betas}, decoupled weight decay {config['weight_decay']}",
        "learning rate": f"one cycle ({config['anneal']}), peak {summary['max_lr']:.4g} at {config['pct_start']:.0%}",
        "loss": f"cross entropy, label smoothing {config['label_smoothing']}",
        "augmentation": ", ".join(filter(None, augmentation)) or "none",
        "initial weights": " and ".join(filter(None, initialisation)) or "PyTorch's own",
        "moving average of the weights": config["ema_decay"] or "no",
        "number format": summary["precision"],
        "seed": summary["seed"],
    }
    results = {
        f"accuracy on the {evaluated} images, last epoch": f"{accuracy:.2%}",
        f"accuracy on the {evaluated} images, best epoch ({summary['best_epoch']})": f"{best:.2%}",
        f"loss on the {evaluated} images, last epoch": f"{summary[f'final_{split}_loss']:.4f}",
        "accuracy on the augmented training images, last epoch": f"{summary['final_train_accuracy']:.2%}",
    }
    unfinished = (
        "" if summary["status"] == "completed" else f"\n**This training was {summary['status']} before its end.**\n"
    )
    return f"""---
license: mit
library_name: pytorch
pipeline_tag: image-classification
datasets:
- {summary["dataset"]}
metrics:
- accuracy
model-index:
- name: s10-resnet9
  results:
  - task:
      type: image-classification
    dataset:
      name: {dataset}
      type: {summary["dataset"]}
      split: {split}
    metrics:
    - type: accuracy
      value: {accuracy:.6g}
---

# ResNet-9 on {dataset}: {name}

A ResNet-9 of {summary["parameters"]:,} parameters, after David Page's
[cifar10-fast](https://github.com/davidcpage/cifar10-fast), that tells {len(classes)} classes apart:
{", ".join(classes)}.
It takes uint8 RGB images of 32 x 32 pixels, `[B, 32, 32, 3]`, and gives logits; normalising is its first layer.
{unfinished}
## Use

```python
from s10_resnet import load_model, predict

model = load_model("last.pt")  # the last epoch's weights; best.pt has those of the best
probabilities = predict(model, ["picture.png"])  # [1, {len(classes)}], in the order of model.classes
```

Pictures of other sizes are cropped to their middle square and scaled to 32 x 32 pixels.

## Results

{_table(("", "n = 1 run"), results)}
Measured on {summary[f"{split}_images"]:,} images without test-time augmentation. One run says nothing of how far
another seed would land from it; the best epoch was chosen by the images it is measured on, so quote the last.

## Training

{_table(("", ""), recipe)}
{summary["train_seconds"]:,.0f} s of training steps on {hardware["accelerator"] or hardware["cpu"]}, torch
{summary["versions"]["torch"]}, albumentations {summary["versions"]["albumentations"]}; s10-resnet
{summary["versions"]["s10-resnet"]}, commit {summary["git_commit"] or "unknown"}. All settings are in `config.json`.

## Data

{origin}

## Limits

- It knows {len(classes)} classes and calls everything one of them; there is no answer for "none of these".
- It has seen images of 32 x 32 pixels. Larger pictures lose what makes them out, and pictures whose subject is small,
  off the middle or drawn are none it was trained for.
- Its probabilities were not calibrated; `scripts/evaluate.py` measures how far off they are.
- It is for teaching and research, not for decisions about people or safety.
"""


def _table(head: tuple[str, str], rows: Mapping[str, Any]) -> str:
    lines = [head, ("---", "---"), *rows.items()]
    return "".join(f"| {name} | {value} |\n" for name, value in lines)
