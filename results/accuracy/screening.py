"""The trainings behind the rows of rows.jsonl that were made on a GPU: a screening, a check of bundles, a final table.

It runs in a checkout of commit a828d3c, whose modules it changes for what that commit has no flag for (a frozen first
convolution, colour jitter on the device, larger images, more sets of views):

    PYTHONPATH=. python results/accuracy/screening.py pb OUT DATA_DIR DEADLINE       rows of the screening, until a time
    PYTHONPATH=. python results/accuracy/screening.py effects OUT                    effect of each factor
    PYTHONPATH=. python results/accuracy/screening.py confirm OUT DATA_DIR DEADLINE  rows of whole bundles
    PYTHONPATH=. python results/accuracy/screening.py final OUT DATA_DIR DEADLINE    run folders, test images

This is a tidied copy of the script that ran; of the copy only the stage ``effects`` has been run.

DEADLINE is in seconds since 1970. Several processes may share OUT: each claims the trainings that it starts.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from s10_resnet.trained import load_model
from s10_resnet.views import shifted
from torch import nn

from s10_resnet import batches, data, engine, model, recipe, session
from s10_resnet.config import Config
from s10_resnet.errors import TrainingError

GRAY = (0.299, 0.587, 0.114)
FACTORS = {  # settings at the low level, the default of a828d3c, and at the high one; capitals have no flag there
    "whiten": ({}, {"whitening_init": True, "FREEZE": True}),
    "dirac": ({}, {"dirac_init": True}),
    "altflip": ({}, {"flip": "alternating"}),
    "wd": ({"weight_decay": 0.3}, {"weight_decay": 0.6}),
    "cutout": ({"cutout": 8}, {"cutout": 12}),
    "jitter": ({}, {"JITTER": 0.1}),
    "smooth": ({}, {"label_smoothing": 0.2}),
    "lr": ({"max_lr": 5e-3}, {"max_lr": 8e-3}),
    "ema": ({}, {"ema_decay": 0.99, "final_div_factor": 1.0}),
    "cos": ({}, {"anneal": "cos"}),
    "pct": ({"pct_start": 0.2}, {"pct_start": 0.3}),
}
GENERATOR = [1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0]  # of the Plackett-Burman design of 12 rows and 11 factors
DESIGN = [[GENERATOR[(j - i) % 11] for j in range(11)] for i in range(11)] + [[0] * 11]
MILD = {"whitening_init": True, "FREEZE": True, "dirac_init": True, "flip": "alternating", "label_smoothing": 0.2}
FULL = {**MILD, "weight_decay": 0.6, "cutout": 10}
# Decided before a row was seen: these three are taken unless they harm by a standard error, the others only if they
# gain by one; jitter, which costs code, if it gains by 0.1 points and two standard errors.
BELIEVED = ("whiten", "dirac", "altflip")

changes = {"FREEZE": False, "SIZE": 32, "JITTER": 0.0}
plain_build, plain_batch, plain_load = model.build_network, batches.DeviceBatches.__getitem__, data.load
loaded: dict = {}


class Scaled(nn.Module):
    """Normalises, then scales the images."""

    def __init__(self, normalize: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # noqa: D102
        size = (changes["SIZE"], changes["SIZE"])
        return nn.functional.interpolate(self.normalize(images), size=size, mode="bilinear")


def build_network(*arguments: object, **keywords: object) -> nn.Module:
    """Returns the network with the changes that are on."""
    network = plain_build(*arguments, **keywords)
    if changes["SIZE"] != 32:
        network.normalize = Scaled(network.normalize)
        network.resnet.pool = nn.AdaptiveMaxPool2d(1)
    if changes["FREEZE"]:
        network.resnet.prep.conv.weight.requires_grad_(False)
    return network


def get_batch(self: batches.DeviceBatches, plan: batches.Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a batch, with jitter of brightness, contrast and saturation if that is on."""
    images, labels = plain_batch(self, plan)
    jitter = changes["JITTER"]
    if jitter:
        rng = np.random.default_rng(np.random.SeedSequence(plan.key, spawn_key=(9,)))
        factors = rng.uniform(1 - jitter, 1 + jitter, (3, len(labels), 1, 1, 1)).astype(np.float32)
        brightness, contrast, saturation = torch.from_numpy(factors).to(images.device)
        weights = torch.tensor(GRAY, device=images.device)
        x = images.float() * brightness
        mean = (x * weights).sum(-1, keepdim=True).mean((1, 2), keepdim=True)
        x = (x - mean) * contrast + mean
        gray = (x * weights).sum(-1, keepdim=True)
        images = ((x - gray) * saturation + gray).round().clamp(0, 255).to(torch.uint8)
    return images, labels


def load(dataset: str, root: Path) -> tuple:
    """Returns the images, read once."""
    if (dataset, root) not in loaded:
        loaded[dataset, root] = plain_load(dataset, root)
    return loaded[dataset, root]


model.build_network, batches.DeviceBatches.__getitem__, data.load = build_network, get_batch, load


def scores(network: nn.Module, images: torch.Tensor, runtime: object) -> dict[str, torch.Tensor]:
    """Returns the logits by set of views, as shared/accuracy's views: none, flip, six, ten, eighteen."""

    def pair(down: int, right: int) -> torch.Tensor:
        moved = shifted(images, down, right)
        return sum(engine.predict(network, view, runtime) for view in (moved, moved.flip(2))) / 2

    logits = {(i, j): pair(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    edge = sum(logits[i, j] for i, j in logits if abs(i) + abs(j) == 1)
    corner = sum(logits[i, j] for i, j in logits if abs(i * j) == 1)
    return {
        "none": engine.predict(network, images, runtime),
        "flip": logits[0, 0],
        "six": logits[0, 0] / 2 + (logits[-1, -1] + logits[1, 1]) / 4,
        "ten": logits[0, 0] / 2 + edge / 8,
        "eighteen": logits[0, 0] / 4 + edge / 8 + corner / 16,
    }


def accuracies(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, runtime: object) -> dict[str, float]:
    """Returns the accuracy by set of views."""
    found = scores(network, images, runtime)
    return {f"accuracy_{name}": (s.argmax(1) == labels).double().mean().item() for name, s in found.items()}


def settings(levels: list[int]) -> dict:
    """Returns the settings of a row of the design."""
    chosen: dict = {}
    for pair, level in zip(FACTORS.values(), levels, strict=True):
        chosen |= pair[level]
    return chosen


def effects(rows: list[dict]) -> dict[str, tuple[float, float]]:
    """Returns effect and standard error of each factor, in points of the mean of plain, flip and six, by regression."""
    rows = [row for row in rows if row["name"].startswith("pb-")]
    y = np.array([100 * np.mean([row[f"accuracy_{views}"] for views in ("none", "flip", "six")]) for row in rows])
    signs = np.array([[2 * level - 1 for level in DESIGN[int(row["name"].split("-")[1])]] for row in rows], float)
    seeds = np.array([row["seed"] for row in rows])
    blocks = np.stack([seeds == seed for seed in sorted(set(seeds))], 1).astype(float)
    x = np.hstack([blocks, signs])
    slopes, *_ = np.linalg.lstsq(x, y, rcond=None)
    residual = y - x @ slopes
    variance = residual @ residual / max(1, len(y) - np.linalg.matrix_rank(x))
    errors = np.sqrt(variance * np.diag(np.linalg.pinv(x.T @ x)))
    first = blocks.shape[1]
    return {name: (2 * slopes[first + i], 2 * errors[first + i]) for i, name in enumerate(FACTORS)}


def choose(found: dict[str, tuple[float, float]]) -> list[int]:
    """Returns the level of each factor by the rule above."""
    least = {"jitter": lambda error: max(0.1, 2 * error)} | {name: lambda error: -error for name in BELIEVED}
    return [int(effect > least.get(name, lambda error: error)(error)) for name, (effect, error) in found.items()]


def jobs(stage: str, out: Path) -> Iterator[tuple[str, dict, int]]:
    """Yields name, settings and seed of the trainings of a stage."""
    if stage == "pb":
        yield from ((f"pb-{i}-s{seed}", settings(row), seed) for seed in range(8) for i, row in enumerate(DESIGN))
        return
    chosen = settings(choose(effects(read_rows(out))))
    bundles = {"chosen": chosen, "old": {}, "full": FULL, "mild": MILD, "chosen40": {**chosen, "SIZE": 40}}
    for seed in range(20, 26):
        for name, bundle in bundles.items():
            if name != "chosen40" or seed < 22:
                yield f"{name}-s{seed}", bundle, seed


def train(name: str, asked: dict, seed: int, data_dir: Path) -> dict:
    """Trains once on all but 5,000 held-out images and returns a row."""
    switch(asked)
    flags = {key: value for key, value in asked.items() if key not in changes}
    config = Config(seed=seed, val_size=5000, data_dir=data_dir, device="cuda", augment_on="device", **flags)
    run, start, failed = session.begin(config), time.perf_counter(), ""
    state = session.training_state(run, config.max_lr)
    criterion, parts = session.criterion(run), {"epochs": config.epochs, "steps_per_epoch": run.steps_per_epoch}
    try:
        with batches.running(session.loader(run, config.epochs)) as stream:
            for _ in engine.fit(state, stream, criterion, lambda: (0.0, 0.0, None), **parts):
                pass
    except TrainingError as error:
        failed = str(error)
    measured = {} if failed else accuracies(state.result, *session.evaluation_tensors(run), run.runtime)
    return {
        "name": name,
        "split": run.split,
        "images": len(run.evaluation.labels),
        **measured,
        "failed": failed,
        "epochs": config.epochs,
        "seed": seed,
        "train_seconds": sum(record.train_seconds for record in state.history),
        "wall_seconds": time.perf_counter() - start,
        **described(config),
        **run.environment,
    }


def train_in_folder(name: str, seed: int, max_lr: float | str, data_dir: Path) -> dict:
    """Trains once on all images, as train.py does, and returns a row with the accuracies on the test images."""
    switch(FULL)
    flags = {key: value for key, value in FULL.items() if key not in changes} | {"max_lr": max_lr}
    places = {"data_dir": data_dir, "output_dir": Path("final"), "name": name}
    config = Config(seed=seed, device="cuda", augment_on="device", **places, **flags)
    summary = recipe.train(config)
    trained = load_model(config.output_dir / name / "last.pt", "cuda", summary["precision"])
    test = data.load("cifar10", data_dir)[1]
    on_device = [torch.from_numpy(part).to(trained.runtime.device) for part in (test.images, test.labels)]
    measured = accuracies(trained.network, *on_device, trained.runtime)
    told = {key: summary[key] for key in ("epochs", "seed", "max_lr", "train_seconds", "versions", "hardware")}
    return {"name": name, "split": "test", "images": len(test.labels), **measured, **told, **described(config)}


def switch(asked: dict) -> None:
    """Puts the changes to the modules on or off."""
    changes.update({"FREEZE": False, "SIZE": 32, "JITTER": 0.0} | {k: v for k, v in asked.items() if k in changes})


def described(config: Config) -> dict:
    """Returns what a row says of the settings."""
    shown = {key: value for key, value in config.to_json().items() if key not in ("data_dir", "output_dir")}
    return {"size": changes["SIZE"], "freeze": changes["FREEZE"], "jitter": changes["JITTER"], "config": shown}


def read_rows(out: Path) -> list[dict]:
    """Returns all rows so far."""
    return [json.loads(line) for path in sorted(out.glob("*.jsonl")) for line in path.read_text().splitlines()]


def main(stage: str, out: Path, data_dir: Path, deadline: float) -> None:
    """Trains what no other process has claimed, as long as there is time for one more."""
    last = 0.0
    if stage == "final":
        seeds = [(f"final-s{seed}", seed, 5e-3) for seed in range(11, 21)]
        seeds += [(f"final-auto-s{seed}", seed, "auto") for seed in (11, 12)]
        work = [(name, lambda n=name, s=seed, lr=lr: train_in_folder(n, s, lr, data_dir)) for name, seed, lr in seeds]
    else:
        todo = jobs(stage, out)
        work = ((name, lambda n=name, a=asked, s=seed: train(n, a, s, data_dir)) for name, asked, seed in todo)
    for name, make in work:
        if time.time() + last > deadline:
            break
        try:
            (out / name).mkdir(parents=True)
        except FileExistsError:
            continue
        start = time.time()
        row = make()
        last = time.time() - start
        with (out / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "effects":
        for name, (effect, error) in effects(read_rows(Path(sys.argv[2]))).items():
            print(f"{name:8} {effect:+.3f} +- {error:.3f}")
    else:
        main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]))
