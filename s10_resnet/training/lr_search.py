"""The range test of a setup: run it, read it, and write its curve, plot and suggestions to a run folder."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

from s10_resnet.data.loader import iterate_batches
from s10_resnet.reporting import plots
from s10_resnet.reporting.formatting import title_suffix
from s10_resnet.training.lr_finder import LRCurve, Suggestion, range_test, smooth, suggest
from s10_resnet.training.setup import Setup
from s10_resnet.utils.console import format_table, logger, progress_bar, warn_on_error
from s10_resnet.utils.io import write_csv, write_json

LINE_STEPS = 20  # between lines where there is no terminal


def run_range_test(setup: Setup) -> LRCurve:
    """Runs the range test with the weights, order and augmentation of the settings' seed."""
    config, model = setup.config, setup.build_model()
    epochs = math.ceil(config.lr_finder_steps / setup.steps_per_epoch)
    bar = progress_bar(total=config.lr_finder_steps, desc="range test", unit="step")

    def on_step(step: int, lr: float, loss: float) -> None:
        bar.update()
        if bar.disable and step % LINE_STEPS == 0:
            logger.info(f"  step {step}: learning rate {lr:.2e}, loss {loss:.4f}")

    with iterate_batches(setup.build_loader(epochs)) as batches, bar:
        return range_test(
            model,
            batches,
            setup.build_optimizer(model, lr=config.lr_finder_start_lr),
            setup.build_criterion(),
            setup.runtime,
            start_lr=config.lr_finder_start_lr,
            end_lr=config.lr_finder_end_lr,
            steps=config.lr_finder_steps,
            on_step=on_step,
        )


def search_lr(setup: Setup, run_dir: Path) -> Suggestion:
    """Runs the range test, logs the suggestions, and writes lr_finder.csv, lr_finder.json and lr_finder.png."""
    config = setup.config
    logger.info(
        f"range test: {config.lr_finder_steps} steps, learning rate {config.lr_finder_start_lr:g} to "
        f"{config.lr_finder_end_lr:g}"
    )
    curve = run_range_test(setup)
    if not len(curve.lrs):
        return suggest(curve)  # the first loss was not finite: there is nothing to write
    smoothed = smooth(curve)
    points = zip(curve.lrs, curve.losses, smoothed, strict=True)
    rows = [{"lr": lr, "loss": loss, "smoothed_loss": average} for lr, loss, average in points]
    write_csv(run_dir / "lr_finder.csv", rows)
    found = suggest(curve)
    content = {
        "recommended_max_lr": found.max_lr,
        "recommended": found.recommended,
        "reason": found.reason,
        "suggestions": found.suggestions,
        "dataset": setup.dataset,
        "config": config.to_json(),
        **setup.environment,
    }
    write_json(run_dir / "lr_finder.json", content)
    with warn_on_error("a plot could not be drawn"):
        title = f"Learning rate range test{title_suffix(setup.dataset)}"
        figure = plots.plot_lr_range(
            curve.lrs, curve.losses, smoothed, suggestions=found.suggestions, recommended=found.recommended, title=title
        )
        plots.save(figure, run_dir / "lr_finder.png")
    table = [
        [name, f"{lr:.2e}", "recommended" if name == found.recommended else ""]
        for name, lr in found.suggestions.items()
    ]
    if table:
        logger.info("\n".join(f"  {line.rstrip()}" for line in format_table(table)))
    if found.max_lr is not None:  # else the command ends with the reason
        logger.info(textwrap.fill(found.reason, 79, break_on_hyphens=False))
    return found
