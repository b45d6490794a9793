"""The range test before a training: the same network, batches and optimizer, and what the test leaves in a folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from s10_resnet.data import loader as batches
from s10_resnet.reporting import figures as report
from s10_resnet.training import lr_finder, session
from s10_resnet.training.lr_finder import LRCurve, Suggestion
from s10_resnet.training.session import Session
from s10_resnet.utils import console as terminal
from s10_resnet.utils import outputs


def measure(run: Session) -> LRCurve:
    """Runs the test with the weights, order and augmentation of the session's seed."""
    config, network = run.config, session.network(run)
    with batches.running(session.loader(run, math.ceil(config.finder_steps / run.steps_per_epoch))) as stream:
        return lr_finder.range_test(
            network,
            stream,
            session.optimizer(run, network, lr=config.finder_start_lr),
            session.criterion(run),
            run.runtime,
            start_lr=config.finder_start_lr,
            end_lr=config.finder_end_lr,
            steps=config.finder_steps,
            watch=partial(terminal.bar, total=config.finder_steps, description="range test", unit="step"),
        )


def find(run: Session, folder: Path) -> Suggestion:
    """Runs the test, says what the rules make of it, and leaves curve, picture and suggestions in a folder.

    With ``runs`` above 1 in the settings there are as many tests, of as many seeds, and what is read is their average.
    """
    config, seeds = run.config, run.config.seeds
    curves = [measure(run._replace(config=replace(config, seed=seed))) for seed in seeds]
    singles = [lr_finder.suggest(curve) for curve in curves]
    curve = lr_finder.average(curves)
    found = lr_finder.suggest(curve)
    if not len(curve.lrs):
        return found  # the first loss was no number: there is nothing to write down or to draw
    points = zip(curve.lrs, curve.losses, lr_finder.smooth(curve), strict=True)
    rows = [{"lr": lr, "loss": loss, "smoothed_loss": smoothed} for lr, loss, smoothed in points]
    if len(curves) > 1:
        rows = [
            {**row, **{f"loss_seed_{seed}": one.losses[i] for seed, one in zip(seeds, curves, strict=True)}}
            for i, row in enumerate(rows)
        ]
    outputs.write_rows(folder / "lr_finder.csv", rows)
    tests = [
        {"seed": seed, "recommended_max_lr": single.max_lr, "suggestions": single.suggestions}
        for seed, single in zip(seeds, singles, strict=True)
    ]
    content = {
        "recommended_max_lr": found.max_lr,
        "reason": found.reason,
        "suggestions": found.suggestions,
        "tests": tests,
        "dataset": run.dataset,
        "config": config.to_json(),
        **run.environment,
    }
    outputs.write_json(folder / "lr_finder.json", content)
    picks = [single.max_lr for single in singles if single.max_lr] if len(singles) > 1 else []
    report.draw_range_test(folder, curve, found, picks, run.note)
    for name, lr in found.suggestions.items():
        mark = "  <- recommended" if name == found.recommended else ""
        terminal.say(f"  {name:<12} {lr:.2e}{_range(name, singles)}{mark}")
    terminal.say(found.reason)
    return found


def _range(rule: str, singles: Sequence[Suggestion]) -> str:
    """What a rule makes of several tests one by one."""
    picks = [single.suggestions[rule] for single in singles if rule in single.suggestions]
    if len(singles) == 1:
        return ""
    if not picks:
        return f"  (none of {len(singles)} alone)"
    low, high = min(picks), max(picks)
    return f"  ({low:.2e} to {high:.2e}, a factor of {high / low:.2f}, by {len(picks)} of {len(singles)} alone)"
