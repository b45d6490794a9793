"""Variants of a recipe, trained with several seeds each: what a setting is worth.

A training of a sweep leaves a row and no folder: on a GPU it is seconds, and a folder's pictures and checkpoints would
take longer than that.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from s10_resnet.data import loader as batches
from s10_resnet.errors import InputError, TrainingError
from s10_resnet.evaluation.evaluate import accuracies
from s10_resnet.evaluation.tta import VIEWS
from s10_resnet.experiments.sweep_results import FILE, Row, content, outcome, report, revived
from s10_resnet.experiments.variants import Variant, expand
from s10_resnet.options import Sweep
from s10_resnet.settings import flag
from s10_resnet.training import loop as engine
from s10_resnet.training import lr_finder, range_test, resumption, session
from s10_resnet.training.session import Session
from s10_resnet.utils import console as terminal
from s10_resnet.utils import io as files
from s10_resnet.utils import outputs, signals

FREE = (*resumption.FREE, "runs", "variants")  # what may change between the beginning of a sweep and its end


@signals.heeded()
def sweep(settings: Sweep) -> dict[str, Any]:
    """Trains every variant with every seed, seed after seed, and says what each variant is worth.

    Returns:
        The content of ``sweep.json``: see `s10_resnet.experiments.sweep_results.content`.

    Raises:
        InputError: For settings or variants that do not fit; nothing has been written then.
        MachineError: If the machine fails; what was trained before is kept.
        Stopped: After Ctrl-C or SIGTERM, likewise.
    """
    run, variants = _begin(settings)
    folder = outputs.make_run_folder(settings.output_dir, settings.name, "sweep")
    return _carry_out(settings, run, variants, folder, [])


@signals.heeded()
def resume(path: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Goes on with a sweep where it stopped, and with more ``runs`` or variants than before beyond that.

    Args:
        path: The sweep's folder, or the file in it.
        asked: Settings that were given this time. They have to be those of the sweep, but for `FREE`.

    Raises:
        InputError: For other settings than those it was begun with, or a folder that holds no sweep.
        MachineError: See `sweep`.
        Stopped: See `sweep`.
    """
    folder = path.parent if path.name == FILE else path
    if not (folder / FILE).is_file():
        raise InputError(f"--resume {path}: must be the folder of a sweep, which holds {FILE}")
    saved = outputs.read_json(folder / FILE)
    try:
        begun = Sweep.from_json(saved["settings"])
        rows = [revived(row) for row in saved["runs"]]
    except (InputError, KeyError, TypeError):
        raise InputError(f"--resume {folder}: {FILE} does not hold a sweep") from None
    changed = [
        f"{flag(name)} {value} (it was begun with {getattr(begun, name)})"
        for name, value in asked.items()
        if name not in FREE and value != getattr(begun, name)
    ]
    if changed:
        raise InputError(f"--resume {folder}: a sweep cannot go on with other settings: {'; '.join(changed)}")
    variants = (*begun.variants, *asked.get("variants", ()))
    settings = replace(begun, **{**asked, "variants": tuple(dict.fromkeys(variants))})
    run, variants = _begin(settings)
    resumption.warn_of_changes({name: saved.get(name) for name in run.environment}, run.environment)
    return _carry_out(settings, run, variants, folder, rows)


def _begin(settings: Sweep) -> tuple[Session, list[Variant]]:
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("torchrun: is not for a sweep, which trains in one process")
    variants = expand(settings)
    run = session.begin(variants[0].config)
    for variant in variants:  # what does not fit is to be told before hours of training
        session.with_recipe(run, variant.config)
    return run, variants


def _carry_out(
    settings: Sweep, run: Session, variants: Sequence[Variant], folder: Path, rows: list[Row]
) -> dict[str, Any]:
    known = {(row["variant"], row["seed"]) for row in rows}
    todo = [(variant, seed) for seed in settings.seeds for variant in variants if (variant.label, seed) not in known]
    with files.locked(folder):
        outputs.write_json(folder / FILE, content(settings, run, variants, rows))
        terminal.say(
            f"{len(variants)} variants, n = {settings.runs} each, {len(todo)} trainings to go; {run.dataset}: "
            f"{len(run.train.labels):,} training and {len(run.evaluation.labels):,} {run.split} images; "
            f"{run.runtime.device}, {run.runtime.precision}, {run.workers} workers"
        )
        try:
            for number, (variant, seed) in enumerate(terminal.bar(todo, len(todo), "sweep", "run"), 1):
                row = _trained(session.with_recipe(run, replace(variant.config, seed=seed)), variant.label)
                rows.append(row)
                outputs.write_json(folder / FILE, content(settings, run, variants, rows))
                terminal.say(f"{number}/{len(todo)}  {variant.label}, seed {seed}: {outcome(row)}")
        except signals.Stopped as stop:
            if rows and not stop.urgent:
                report(folder, content(settings, run, variants, rows), run.note)
            terminal.say(f"python scripts/sweep.py --resume {folder} goes on")
            raise
        result = content(settings, run, variants, rows)
        report(folder, result, run.note)
    return result


def _trained(run: Session, label: str) -> Row:
    """Trains once, in memory; a loss that is no number is a result like any other."""
    config = run.config
    row = Row(
        variant=label,
        seed=config.seed,
        failed="",
        max_lr=math.nan,
        train_accuracy=math.nan,
        **{f"accuracy_{views}": math.nan for views in VIEWS},
        train_seconds=math.nan,
    )
    try:
        row["max_lr"] = config.max_lr if config.max_lr != "auto" else _found_lr(run)
        state = session.training_state(run, row["max_lr"])
        with (
            terminal.Progress(config.epochs, len(run.train.labels), run.split) as progress,
            batches.running(session.loader(run, config.epochs)) as stream,
        ):
            for _ in engine.fit(
                state,
                stream,
                session.criterion(run),
                lambda: (0.0, 0.0, None),  # only the end counts
                epochs=config.epochs,
                steps_per_epoch=run.steps_per_epoch,
                watch=progress.watch,
            ):
                progress.advance()
        state.check_weights()
    except TrainingError as error:
        return {**row, "failed": str(error)}
    return {
        **row,
        "train_accuracy": state.history[-1].train_accuracy,
        **accuracies(state.result, *session.evaluation_tensors(run), run.runtime),
        "train_seconds": sum(record.train_seconds for record in state.history),
    }


def _found_lr(run: Session) -> float:
    found = lr_finder.suggest(range_test.measure(run))
    if found.max_lr is None:
        raise TrainingError(f"--max-lr auto: {found.reason}")
    return found.max_lr
