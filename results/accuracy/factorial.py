"""The factorial experiment of rows.jsonl (names fac-* and range-*), on one GPU, with the code of commit d546387.

    python results/accuracy/factorial.py screen OUT DATA_DIR DEADLINE   16 settings on 10,000 held-out images
    python results/accuracy/factorial.py choose OUT                     effect of each factor, and the settings chosen
    python results/accuracy/factorial.py table OUT DATA_DIR DEADLINE    range tests; runs on the test images; rates

DEADLINE is in seconds since 1970. Several processes may share OUT: each claims the trainings that it starts. There was
time for 18 trainings of the first stage and the range tests of the last.

The rule, from before the first training: a factor leaves the default if its effect on the mean of the accuracies
without TTA, with flip and with flip_shift is above half of its standard error. Where the Plackett-Burman screening
(screening.py) had the same contrast, its effect counts in, weighted by inverse variance.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from s10_resnet.config import TrainConfig
from s10_resnet.errors import TrainingError
from s10_resnet.models.pretrained import load_model
from s10_resnet.training.lr_search import run_range_test
from s10_resnet.training.run_logger import TrainingLogger
from s10_resnet.training.setup import Setup, create_setup
from s10_resnet.training.trainer import Trainer, fit_run
from s10_resnet.utils.io import write_json

FACTORS = {  # the default, and what it is compared with
    "pct_start": (0.2, 0.3),
    "weight_decay": (0.6, 0.3),
    "cutout_size": (10, 8),
    "label_smoothing": (0.2, 0.1),
    "max_lr": (5e-3, 3.5e-3),
    "beta1": (0.9, 0.85),
    "beta2": (0.99, 0.95),
    "logit_scale": (0.125, 0.0625),
}
EARLIER = {"pct_start": (0.07, 0.08), "weight_decay": (0.18, 0.08), "label_smoothing": (0.13, 0.08)}
# 2^(8-4), of resolution IV: no main effect is confounded with an interaction of two factors.
BASE = [[i >> bit & 1 for bit in range(4)] for i in range(16)]
DESIGN = [[a, b, c, d, b ^ c ^ d, a ^ c ^ d, a ^ b ^ c, a ^ b ^ d] for a, b, c, d in BASE]
METRICS = {"none": "accuracy", "flip": "accuracy_tta_flip", "six": "accuracy_tta_flip_shift"}
VAL_SIZE = 10_000
FIRST_TABLE_SEED = 21


def settings(levels: list[int]) -> dict[str, Any]:
    """Returns the settings of a row of the design."""
    values = {name: pair[level] for (name, pair), level in zip(FACTORS.items(), levels, strict=True)}
    return {"betas": (values.pop("beta1"), values.pop("beta2")), **values}


def read_rows(out: Path) -> list[dict]:
    """Returns all rows so far."""
    return [json.loads(line) for path in sorted(out.glob("*.jsonl")) for line in path.read_text().splitlines()]


def effects(rows: list[dict]) -> dict[str, tuple[float, float]]:
    """Returns effect and standard error of each factor in points, by regression with a mean per seed."""
    rows = [row for row in rows if row["name"].startswith("fac-") and not row["failed"]]
    y = np.array([100 * np.mean([row[f"accuracy_{views}"] for views in METRICS]) for row in rows])
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


def combine(found: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Returns the effects with those of the earlier screening."""
    combined = {}
    for name, own in found.items():
        estimates = np.array([own, EARLIER[name]] if name in EARLIER else [own])
        weights = 1 / estimates[:, 1] ** 2
        combined[name] = (float(weights @ estimates[:, 0] / weights.sum()), float(weights.sum() ** -0.5))
    return combined


def choose(out: Path) -> dict[str, Any]:
    """Returns the settings by the rule above."""
    return settings([int(effect > error / 2) for effect, error in combine(effects(read_rows(out))).values()])


def describe(setup: Setup[TrainConfig]) -> dict[str, Any]:
    """Returns what a row says of settings and machine."""
    config = {name: value for name, value in setup.config.to_json().items() if name not in ("data_dir", "output_dir")}
    return {"epochs": setup.config.epochs, "seed": setup.config.seed, "config": config, **setup.environment}


def measure(setup: Setup[TrainConfig], model: Any) -> dict[str, float]:
    """Returns the accuracy on the evaluation images by set of views."""
    from s10_resnet.evaluation.tta import tta_accuracies  # of that commit; `choose` runs with the present code, too

    found = tta_accuracies(model, *setup.eval_tensors(), setup.runtime)
    return {f"accuracy_{views}": found[metric] for views, metric in METRICS.items()}


def train(setup: Setup[TrainConfig]) -> dict[str, Any]:
    """Trains without a run folder and returns a row."""
    trainer, measured, failed = Trainer(setup, float(setup.config.max_lr)), {}, ""
    try:
        trainer.fit(TrainingLogger())
        measured = measure(setup, trainer.state.eval_model)
    except TrainingError as error:
        failed = str(error)
    seconds = sum(metrics.train_seconds for metrics in trainer.state.history)
    images = {"split": setup.eval_split, "images": len(setup.eval.labels)}
    return {**images, **measured, "failed": failed, "train_seconds": seconds, **describe(setup)}


def train_in_folder(setup: Setup[TrainConfig], out: Path, name: str) -> dict[str, Any]:
    """Trains as train.py does, with all files, and returns a row."""
    run_dir = out / name
    setup = setup.with_config(setup.config.replace(output_dir=out, name=name))
    write_json(run_dir / "config.json", setup.config.to_json())
    summary = fit_run(setup, run_dir, float(setup.config.max_lr))
    model = load_model(run_dir / "last.pt", str(setup.runtime.device), setup.runtime.precision)
    measured = measure(setup, model.network)
    images = {"split": setup.eval_split, "images": len(setup.eval.labels)}
    return {**images, **measured, "failed": "", "train_seconds": summary["train_seconds"], **describe(setup)}


def test_range(setup: Setup[TrainConfig]) -> dict[str, Any]:
    """Runs a range test and returns a row with its curve."""
    curve = run_range_test(setup)
    return {"lrs": curve.lrs.tolist(), "losses": curve.losses.tolist(), **describe(setup)}


def jobs(stage: str, out: Path, data_dir: Path) -> Iterator[tuple[str, Any]]:
    """Yields names of trainings and functions that run them."""
    base = TrainConfig(data_dir=data_dir)
    held_out = create_setup(base.replace(val_size=VAL_SIZE))
    if stage == "screen":
        for seed in range(4):
            for i, levels in enumerate(DESIGN):
                config = base.replace(val_size=VAL_SIZE, seed=seed, **settings(levels))
                yield f"fac-{i}-s{seed}", partial(train, held_out.with_config(config))
        return
    base = base.replace(**choose(out))
    everything = create_setup(base)
    for seed in range(6):
        yield f"range-s{seed}", partial(test_range, everything.with_config(base.replace(seed=seed)))
    for seed in range(FIRST_TABLE_SEED, FIRST_TABLE_SEED + 10):
        name = f"table-s{seed}"
        yield name, partial(train_in_folder, everything.with_config(base.replace(seed=seed)), out, name)
    for seed in range(2):
        for max_lr in (1e-2, 2.5e-3, 5e-3, 2e-2):
            config = base.replace(val_size=VAL_SIZE, seed=seed, max_lr=max_lr)
            yield f"lr-{max_lr:g}-s{seed}", partial(train, held_out.with_config(config))


def main(stage: str, out: Path, data_dir: Path, deadline: float) -> None:
    """Runs what no other process has claimed, as long as there is time for one more."""
    longest = 40.0  # seconds; the first training has no other to go by
    for name, run in jobs(stage, out, data_dir):
        if time.time() + longest > deadline:
            break
        try:
            (out / name).mkdir(parents=True)
        except FileExistsError:
            continue
        start = time.time()
        row = {"name": name, **run(), "wall_seconds": time.time() - start}
        longest = max(longest, row["wall_seconds"])
        with (out / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    stage, out = sys.argv[1], Path(sys.argv[2])
    if stage == "choose":
        found = effects(read_rows(out))
        for (name, (effect, error)), combined in zip(found.items(), combine(found).values(), strict=True):
            print(f"{name:16} {effect:+.3f} +- {error:.3f}, with the earlier {combined[0]:+.3f} +- {combined[1]:.3f}")
        print(json.dumps(choose(out)))
    else:
        main(stage, out, Path(sys.argv[3]), float(sys.argv[4]))
