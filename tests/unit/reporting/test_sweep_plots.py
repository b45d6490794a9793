import numpy as np
import pytest
from matplotlib.colors import to_hex

from s10_resnet.experiments.statistics import summarize
from s10_resnet.reporting import plots, sweep_plots


def content(*variants, **settings):
    """What ``sweep.json`` would hold of variants: label, changes, accuracies of the trainings."""
    told, runs = [], []
    for label, changes, values in variants:
        accuracies = {"accuracy": values, "accuracy_tta_flip_shift": [v + 0.01 for v in values]}
        good = {metric: summarize(of_metric) for metric, of_metric in accuracies.items()} if values else None
        told.append({"label": label, "changes": changes, "statistics": good, "difference": None, "failed": 0})
        runs += [{"variant": label, "failed": "", "max_lr": 0.02 + 0.01 * i} for i, _ in enumerate(values)]
    return {
        "variants": told,
        "trials": runs,
        "settings": {"max_lr": 0.005, "cutout_size": 8, "flip": "random", **settings},
    }


LRS = content(
    ("baseline", {}, [0.90, 0.91, 0.92]),
    ("max-lr=1e-3", {"max_lr": 0.001}, [0.80, 0.82, 0.84]),
    ("max-lr=1e-2", {"max_lr": 0.01}, [0.70]),
)
WORDS = content(
    ("baseline", {}, [0.90, 0.91, 0.92]),
    ("flip=none", {"flip": "none"}, [0.8]),
    ("cutout_size=4", {"cutout_size": 4}, []),
)


def lines(axes, **look):
    return [line for line in axes.lines if all(getattr(line, f"get_{name}")() == value for name, value in look.items())]


def curve(figure, label):
    (line,) = (line for line in figure.axes[0].lines if line.get_label() == label)
    return line.get_xdata(), line.get_ydata()


def test_a_single_number_that_varies_is_an_axis():
    figure = sweep_plots.plot_sweep(LRS, title="a title")
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_xscale(), figure.get_suptitle()) == (
        "--max-lr (n = 1 to 3 each)",
        "log",
        "a title",
    )
    for label, gain in (("mean, no TTA", 0), ("mean, TTA flip_shift", 1)):
        x, y = curve(figure, label)
        np.testing.assert_allclose(x, [0.001, 0.005, 0.01])  # in the order of the values, the given one among them
        np.testing.assert_allclose(y, np.array([82, 91, 70]) + gain)


def test_every_training_and_the_intervals_are_there():
    (axes,) = sweep_plots.plot_sweep(LRS, title="").axes
    blue = [line for line in axes.lines if to_hex(line.get_color()) == plots.BLUE.lower()]
    ticks = [line for line in blue if line.get_marker() == "_"]
    assert sorted(value for line in ticks for value in line.get_ydata()) == pytest.approx([70, 80, 82, 84, 90, 91, 92])
    bars = [line for line in blue if line.get_marker() == "None"]
    low, high = summarize([0.8, 0.82, 0.84])["interval"]
    assert bars[0].get_ydata() == pytest.approx([100 * low, 100 * min(high, 1)])
    assert len(bars) == 2  # a single training has none


def test_a_narrow_range_is_not_logarithmic():
    few = [("baseline", {}, [0.9]), *((f"cutout_size={n}", {"cutout_size": n}, [0.9]) for n in (0, 4))]
    (axes,) = sweep_plots.plot_sweep(content(*few), title="").axes
    assert (axes.get_xlabel(), axes.get_xscale()) == ("--cutout-size (n = 1 each)", "linear")
    wide = [("baseline", {}, [0.9]), *((f"cutout_size={n}", {"cutout_size": n}, [0.9]) for n in (0, 32))]
    assert sweep_plots.plot_sweep(content(*wide), title="").axes[0].get_xscale() == "linear"  # 0 has no logarithm


@pytest.mark.parametrize(
    "variants",
    [
        [("a", {"flip": "none"}, [0.9]), ("b", {"flip": "alternating"}, [0.9])],
        [("a", {"cutout_size": 4}, [0.9])],  # two values are no curve
        [("a", {"cutout_size": 4}, [0.9]), ("b", {"max_lr": 0.1}, [0.9])],
        [("a", {"cutout_size": 4, "max_lr": 0.1}, [0.9]), ("b", {"cutout_size": 6, "max_lr": 0.1}, [0.9])],
        [("a", {"dirac_init": True}, [0.9])],
        [("a", {"max_lr": "auto"}, [0.9]), ("b", {"max_lr": 0.1}, [0.9]), ("c", {"max_lr": 0.2}, [0.9])],
    ],
)
def test_anything_else_is_a_line_a_variant(variants):
    (axes,) = sweep_plots.plot_sweep(content(("baseline", {}, [0.9]), *variants, dirac_init=False), title="").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        f"{label} (n = 1)" for label in ("baseline", *(label for label, _, _ in variants))
    ]
    assert axes.yaxis_inverted()  # the first on top


def test_what_a_line_shows():
    (axes,) = sweep_plots.plot_sweep(WORDS, title="").axes
    means = [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines(axes, marker="o") if len(line.get_xdata())]
    assert means == [(pytest.approx(91), pytest.approx(-0.14)), (pytest.approx(80), pytest.approx(0.86))]
    trainings = [line.get_xdata().tolist() for line in lines(axes, marker="|")]
    assert trainings[:2] == [pytest.approx([90, 91, 92]), pytest.approx([80])]
    left, right = (line.get_xdata() for line in lines(axes, linestyle="--") if len(line.get_xdata()))
    assert (left[0], right[0]) == pytest.approx((91, 92))  # what there is to beat, without and with TTA
    assert axes.get_xlim()[0] >= 0
    assert axes.get_xlim()[1] <= 100


INTERVAL = "95 % confidence interval of the mean"


@pytest.mark.parametrize(
    ("given", "tick", "more"),
    [
        (LRS, "_", [INTERVAL]),
        (WORDS, "|", ["mean of baseline", INTERVAL]),
        (content(("baseline", {}, [0.9])), "|", ["mean of baseline"]),
        (content(("baseline", {}, [])), "|", []),
    ],
)
def test_it_can_be_saved_and_the_legend_explains_every_mark(given, tick, more, tmp_path):
    figure = sweep_plots.plot_sweep(given, title="a title")
    plots.save(figure, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 8_000
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    means = ["mean, no TTA", "mean, TTA flip_shift"] if any(v["statistics"] for v in given["variants"]) else []
    assert named == [*means, "one run", *more]
    assert figure.legends[0].legend_handles[named.index("one run")].get_marker() == tick


@pytest.mark.parametrize("variants", [3, 2])
def test_the_accuracy_axis_ends_at_100(variants):
    rates = [("baseline", {}, [0.99, 1.0, 1.0]), *((f"max-lr={lr}", {"max_lr": lr}, [1.0]) for lr in (0.01, 0.02))]
    (axes,) = sweep_plots.plot_sweep(content(*rates[:variants]), title="").axes
    assert (axes.get_ylim() if variants == 3 else axes.get_xlim())[1] == 100


def test_a_sweep_of_which_nothing_ended_well_is_drawn(tmp_path):
    failed = content(*((f"max-lr={lr}", {"max_lr": lr}, []) for lr in (0.1, 0.2, 0.4)))
    plots.save(sweep_plots.plot_sweep(failed, title=""), tmp_path / "sweep.png")
