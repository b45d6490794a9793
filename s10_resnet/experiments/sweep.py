"""Many training runs in one command: several seeds of the settings, and of variants of them.

Each run has a folder with checkpoints inside the sweep's folder, so that a sweep that was stopped continues in the
middle of a run. Without a variant, a sweep measures how much a result depends on the seed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from s10_resnet.arguments import parse_variant
from s10_resnet.config import SweepConfig, TrainConfig, flag, printable
from s10_resnet.errors import InputError, TrainingError
from s10_resnet.evaluation.tta import tta_accuracy
from s10_resnet.experiments.statistics import summarize, welch_interval
from s10_resnet.models.pretrained import load_model
from s10_resnet.reporting import plots, sweep_plots
from s10_resnet.reporting.formatting import plural, title_suffix
from s10_resnet.training import checkpoint
from s10_resnet.training.run_files import read_summary
from s10_resnet.training.setup import Setup, create_setup
from s10_resnet.training.trainer import fit_run
from s10_resnet.utils.console import format_table, logger, progress_bar, warn_on_error
from s10_resnet.utils.io import create_run_dir, exclusive_lock, read_json, write_json
from s10_resnet.utils.launch import command, launch_env
from s10_resnet.utils.signals import ShutdownRequested, graceful_shutdown

FILE = "sweep.json"
BASELINE = "baseline"  # the label of the settings as given
METRICS = {"accuracy": "none", "accuracy_tta_flip": "flip", "accuracy_tta_flip_shift": "flip_shift"}  # and their TTA
MAY_CHANGE = (*checkpoint.RESUME_OVERRIDES, "num_seeds", "variants")  # when a sweep is resumed


class TrialResult(BaseModel):
    """The result of one run after its last epoch; accuracies are fractions of 1, all 0 if it failed."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    variant: str
    seed: int
    run: str  # name of its folder
    failed: str = ""  # the reason
    max_lr: float = 0.0
    train_accuracy: float = 0.0
    train_seconds: float = 0.0
    accuracy: float = 0.0
    accuracy_tta_flip: float = 0.0
    accuracy_tta_flip_shift: float = 0.0


@graceful_shutdown()
def sweep(config: SweepConfig) -> dict[str, Any]:
    """Trains every variant with every seed, one seed after the other, and reports the accuracy of each variant.

    Returns:
        The content of ``sweep.json``: see `summarize_trials`.

    Raises:
        InputError: For settings or variants that do not fit; nothing has been written then.
        EnvironmentFailure: If the machine fails; finished runs are kept, and the sweep can be resumed.
        ShutdownRequested: After Ctrl-C or SIGTERM, likewise.
    """
    setup, variants = _prepare(config)
    sweep_dir = create_run_dir(config.output_dir, config.name, "sweep")
    return _run(config, setup, variants, sweep_dir, [])


@graceful_shutdown()
def resume(path: Path | str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Continues a sweep, within a run if it was stopped in one; more seeds or variants may be added.

    The path is that of the sweep's folder, or of the file in it. The settings given now must be those of the sweep,
    except for `MAY_CHANGE`.

    Raises:
        InputError: For other settings than those of the sweep, or a folder that is not a sweep's.
        EnvironmentFailure, ShutdownRequested: See `sweep`.
    """
    path, given = Path(path), given or {}
    sweep_dir = path.parent if path.name == FILE else path
    if not (sweep_dir / FILE).is_file():
        raise InputError(f"--resume {path}: must be the folder of a sweep, which holds {FILE}")
    saved = read_json(sweep_dir / FILE)
    try:
        begun = SweepConfig.from_json(saved["settings"])
        trials = [TrialResult.model_validate(trial) for trial in saved["trials"]]
    except (InputError, KeyError, TypeError, ValidationError):
        raise InputError(f"--resume {sweep_dir}: {FILE} does not hold a sweep of this version") from None
    changed = [
        f"{flag(name)} {value} (the sweep has {getattr(begun, name)})"
        for name, value in given.items()
        if name not in MAY_CHANGE and value != getattr(begun, name)
    ]
    if changed:
        raise InputError(f"--resume {sweep_dir}: a sweep cannot be resumed with other settings: {'; '.join(changed)}")
    variants = tuple(dict.fromkeys((*begun.variants, *given.get("variants", ()))))
    config = checkpoint.override_settings(begun, given).replace(**{**given, "variants": variants})
    setup, expanded = _prepare(config)
    checkpoint.warn_of_changed_environment({name: saved.get(name) for name in setup.environment}, setup.environment)
    return _run(config, setup, expanded, sweep_dir, trials)


def expand_variants(config: SweepConfig) -> dict[str, TrainConfig]:
    """Returns by label the settings as given, and all variants that differ from them and from each other.

    Raises:
        InputError: For a variant that names no setting, or a value that is not allowed.
    """
    baseline = TrainConfig(**{name: getattr(config, name) for name in TrainConfig.model_fields} | {"name": ""})
    variants = {BASELINE: baseline}
    for text in config.variants:
        for label, changes in parse_variant(text).items():
            variant = baseline.replace(**changes)
            if variant not in variants.values():
                variants[label] = variant
    return variants


def summarize_trials(
    config: SweepConfig, setup: Setup, variants: Mapping[str, TrainConfig], trials: Sequence[TrialResult]
) -> dict[str, Any]:
    """Returns the content of ``sweep.json``.

    It has ``settings``; ``variants``, each with its label, the settings that differ from the baseline, the number of
    failed runs, statistics of each accuracy (`statistics.summarize`), and the difference of the accuracy from the
    baseline's (`statistics.welch_interval`); ``trials``, a `TrialResult` each; data and environment.
    """
    baseline = variants[BASELINE].to_json()
    reference = [trial.accuracy for trial in trials if trial.variant == BASELINE and not trial.failed]
    rows = []
    for label, variant in variants.items():
        own = [trial for trial in trials if trial.variant == label]
        finished = [trial for trial in own if not trial.failed]
        accuracies = {metric: [getattr(trial, metric) for trial in finished] for metric in METRICS}
        comparable = label != BASELINE and finished and reference
        rows.append(
            {
                "label": label,
                "changes": {k: v for k, v in variant.to_json().items() if v != baseline[k]},
                "failed": len(own) - len(finished),
                "statistics": {name: summarize(values) for name, values in accuracies.items()} if finished else None,
                "difference": welch_interval(accuracies["accuracy"], reference) if comparable else None,
            }
        )
    return {
        "settings": config.to_json(),
        "variants": rows,
        "trials": [trial.model_dump() for trial in trials],
        "dataset": setup.dataset,
        "eval_split": setup.eval_split,
        "eval_images": len(setup.eval.labels),
        **setup.environment,
    }


def _prepare(config: SweepConfig) -> tuple[Setup[TrainConfig], dict[str, TrainConfig]]:
    if launch_env().world_size > 1:
        raise InputError("torchrun: a sweep runs in a single process")
    variants = expand_variants(config)
    setup = create_setup(variants[BASELINE])
    for variant in variants.values():  # what does not fit is reported before hours of training
        setup.with_config(variant)
    return setup, variants


def _run(
    config: SweepConfig,
    setup: Setup[TrainConfig],
    variants: Mapping[str, TrainConfig],
    sweep_dir: Path,
    trials: list[TrialResult],
) -> dict[str, Any]:
    done = {(trial.variant, trial.seed) for trial in trials}
    todo = [(label, seed) for seed in config.seeds for label in variants if (label, seed) not in done]
    names = _run_names(variants)
    with exclusive_lock(sweep_dir):
        write_json(sweep_dir / FILE, summarize_trials(config, setup, variants, trials))
        logger.info(f"writing to {sweep_dir}\n{setup.description}")
        logger.info(f"variants: {len(variants)}, seeds: {config.num_seeds}, runs to train: {len(todo)}")
        try:
            for number, (label, seed) in enumerate(progress_bar(todo, desc="sweep", unit="run"), 1):
                name = f"{names[label]}-seed-{seed}"
                run_config = variants[label].replace(seed=seed, output_dir=sweep_dir, name=name)
                trials.append(_train(setup.with_config(run_config), sweep_dir / name, label))
                write_json(sweep_dir / FILE, summarize_trials(config, setup, variants, trials))
                logger.info(f"{number}/{len(todo)}  {label}, seed {seed}: {_describe(trials[-1])}")
        except ShutdownRequested:
            logger.info(f"to continue: {command('sweep', '--resume', sweep_dir)}")
            raise
        content = summarize_trials(config, setup, variants, trials)
        _report(sweep_dir, content)
    return content


def _train(setup: Setup[TrainConfig], run_dir: Path, label: str) -> TrialResult:
    """Trains in a run folder, from its checkpoint if it has one. A loss that is not finite is a result, too."""
    named: dict[str, Any] = {"variant": label, "seed": setup.config.seed, "run": run_dir.name}
    run_dir.mkdir(exist_ok=True)
    try:
        with exclusive_lock(run_dir):
            write_json(run_dir / "config.json", setup.config.to_json())
            summary = read_summary(run_dir) if (run_dir / "summary.json").is_file() else {}
            if summary.get("status") != "completed":
                path = checkpoint.find_checkpoint(run_dir, run_dir)
                saved = checkpoint.load_checkpoint(path) if path else None
                summary = fit_run(setup, run_dir, saved, quiet=True)
    except TrainingError as error:
        return TrialResult(**named, failed=printable(str(error), 1000))
    model = load_model(run_dir, str(setup.runtime.device), setup.runtime.precision)
    images, labels = setup.eval_tensors()
    accuracies = {m: tta_accuracy(model, tta, images, labels, setup.runtime) for m, tta in METRICS.items()}
    return TrialResult(
        **named | accuracies,
        max_lr=summary["max_lr"],
        train_accuracy=summary["final_train_accuracy"],
        train_seconds=summary["train_seconds"],
    )


def _run_names(labels: Iterable[str]) -> dict[str, str]:
    """Returns the first part of the names of the run folders by label."""
    names: dict[str, str] = {}
    for index, label in enumerate(labels):
        name = re.sub(r"[^A-Za-z0-9._]+", "-", label)
        names[label] = name if len(name) <= 80 and name not in names.values() else f"variant-{index}"
    return names


def _report(sweep_dir: Path, content: Mapping[str, Any]) -> None:
    data = plural(content["eval_images"], f"{content['eval_split']} image")
    logger.info(f"\naccuracy in % on the {data} of {content['dataset']} after the last epoch")
    logger.info("\n".join(format_table(_table(content))))
    title = f"Accuracy on the {data}{title_suffix(content['dataset'])}"
    with warn_on_error("a plot could not be drawn"):
        plots.save(sweep_plots.plot_sweep(content, title=title), sweep_dir / "sweep.png")
    logger.info(f"see {sweep_dir / FILE} and sweep.png; to compare the curves:\n{command('compare', sweep_dir)}")


def _table(content: Mapping[str, Any]) -> list[list[str]]:
    rows = [["settings", "TTA", "n", "mean", "std", "95 % interval", "values"]]
    for variant in content["variants"]:
        if variant["statistics"] is None:
            rows.append([variant["label"], "-", "0", "-", "-", "-", "all failed" if variant["failed"] else ""])
            continue
        for metric, tta in METRICS.items():
            row = variant["statistics"][metric]
            values = " ".join(map(_percent, row["values"]))
            cells = [str(row["n"]), _percent(row["mean"]), _percent(row["std"]), _interval(row["interval"]), values]
            rows.append([variant["label"] if tta == "none" else "", tta, *cells])
        if variant["difference"] and variant["difference"]["interval"]:
            gap = variant["difference"]
            cells = [f"{100 * gap['difference']:+.2f}", "", _interval(gap["interval"]), ""]
            rows.append([f"  minus {BASELINE}", "none", "", *cells])
    return rows


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f}"


def _interval(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f}"


def _describe(trial: TrialResult) -> str:
    if trial.failed:
        return f"failed: {trial.failed}"
    accuracies = ", ".join(f"{_percent(getattr(trial, metric))} {tta}" for metric, tta in METRICS.items())
    return f"{accuracies}; LR {trial.max_lr:.3g}, {trial.train_seconds:.0f} s"
