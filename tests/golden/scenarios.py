"""What is run in both revisions: a function a scenario, from a revision to the result that is compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.golden.results import (
    LAST,
    Result,
    ScenarioError,
    find,
    read_evaluation,
    read_json,
    read_lr_finder,
    read_predictions,
    read_sweep,
)
from tests.golden.revision import Revision

# Five steps an epoch, the last one ragged; four seconds for two epochs in fp32 on a core.
MACHINE = ("--device", "cpu", "--precision", "fp32")
DATA = ("--dataset", "synthetic", "--limit", "150", "--batch-size", "32")
# The default settings of version 0.1, which are not those of today.
RECIPE = "--weight-decay 0.3 --label-smoothing 0.1 --flip random --cutout 8 --no-dirac-init --no-whitening-init"
SMALL = (*MACHINE, *DATA, *RECIPE.split(), "--output-dir", "outputs")
TRAINING = (*SMALL, "--epochs", "2")
IN_ONE_PROCESS = ("--workers", "0")
FINDER = ("--finder-steps", "40")
OPTIONS = "--flip alternating --dirac-init --cutout 6 --anneal cos --val-size 64"
BETAS = ("--optimizer-betas", "0.85", "0.98")


def default(revision: Revision) -> Result:
    """A training with the recipe as it is."""
    return revision.train("default", *TRAINING, *IN_ONE_PROCESS)


def device(revision: Revision) -> Result:
    """Augmentation of whole batches on the device."""
    return revision.train("device", *TRAINING, *IN_ONE_PROCESS, "--augment-on", "device")


def workers(revision: Revision) -> Result:
    """Augmentation in two processes."""
    return revision.train("workers", *TRAINING, "--workers", "2")


def resume(revision: Revision) -> Result:
    """A training that is stopped in the middle of an epoch and goes on."""
    return revision.train_stopped_and_resumed("resume", *TRAINING, *IN_ONE_PROCESS)


def options(revision: Revision) -> Result:
    """Alternating flip, Dirac initialization, other settings, held-out images."""
    return revision.train("options", *TRAINING, *IN_ONE_PROCESS, *OPTIONS.split(), *BETAS)


def find_lr(revision: Revision) -> Result:
    """The curve of a range test; version 0.1 recommends another rate."""
    revision.run("find_lr.py", *SMALL, *IN_ONE_PROCESS, *FINDER, "--seed", "1", "--name", "find_lr")
    return read_lr_finder(revision.folder("find_lr"))


def sweep(revision: Revision) -> Result:
    """The recipe and a variant with two seeds each."""
    # Small steps, thirty of them: a network that predicts one class for all images would hide differences.
    words = "--epochs 2 --runs 2 --val-size 64 --batch-size 10 --logit-scale 1 --max-lr 3e-4"
    words += " --name sweep max-lr=1e-4"
    revision.run("sweep.py", *SMALL, *IN_ONE_PROCESS, *words.split())
    return read_sweep(revision.folder("sweep"))


def evaluate(revision: Revision) -> Result:
    """The weights of `options` on all images that it held out, averaged with the mirror images."""
    options(revision)
    before = set(revision.work.rglob("*.json"))
    checkpoint = str(find(revision.folder("options"), LAST))
    revision.run("evaluate.py", "--checkpoint", checkpoint, "--tta", "flip", "--split", "val", *MACHINE)
    contents = [read_json(path) for path in sorted(set(revision.work.rglob("*.json")) - before)]
    found = [content for content in contents if isinstance(content, dict) and "accuracy" in content]
    if len(found) != 1:
        raise ScenarioError(f"{revision.label}: evaluate.py left {len(found)} JSON files with an accuracy")
    return read_evaluation(found[0])


def predict(revision: Revision) -> Result:
    """The weights of `default` on picture files, averaged over the six views."""
    default(revision)
    pictures = write_pictures(revision.work / "pictures")
    checkpoint = str(find(revision.folder("default"), LAST))
    out = revision.run("predict.py", *pictures, "--checkpoint", checkpoint, "--json", "--tta", "six", "--device", "cpu")
    return read_predictions(json.loads(out))


def write_pictures(folder: Path) -> list[str]:
    """Writes noise of several sizes, the same every time, and returns the paths."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for place, (height, width) in enumerate([(32, 32), (32, 32), (48, 40), (20, 64)]):
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{place}.png")
    return [str(path) for path in sorted(folder.iterdir())]


_ALL = (default, device, workers, resume, options, find_lr, sweep, evaluate, predict)
SCENARIOS: dict[str, Callable[[Revision], Result]] = {scenario.__name__: scenario for scenario in _ALL}
# Neither an interruption nor the number of workers may show in the numbers.
SAME_AS = {"resume": "default", "workers": "default"}
