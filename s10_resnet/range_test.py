"""The range test before a training: the same network, batches and optimizer, and what the test leaves in a folder."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

from s10_resnet import batches, lr_finder, outputs, report, session, terminal
from s10_resnet.lr_finder import LRCurve, Suggestion
from s10_resnet.session import Session


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
    """Runs the test, says what the rules make of it, and leaves curve, picture and suggestions in a folder."""
    curve = measure(run)
    found = lr_finder.suggest(curve)
    points = zip(curve.lrs, curve.losses, lr_finder.smooth(curve), strict=True)
    rows = [{"lr": lr, "loss": loss, "smoothed_loss": smoothed} for lr, loss, smoothed in points]
    outputs.write_rows(folder / "lr_finder.csv", rows)
    content = {
        "recommended_max_lr": found.max_lr,
        "reason": found.reason,
        "suggestions": found.suggestions,
        "dataset": run.dataset,
        "config": run.config.to_json(),
        **run.environment,
    }
    outputs.write_json(folder / "lr_finder.json", content)
    report.draw_range_test(folder, curve, found, run.note)
    for name, lr in found.suggestions.items():
        terminal.say(f"  {name:<12} {lr:.2e}{'  <- recommended' if name == found.recommended else ''}")
    terminal.say(found.reason)
    return found
