import math
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from s10_resnet.reporting import plots

NAN = math.nan
DASH = "\N{EN DASH}"


@pytest.fixture(autouse=True)
def _no_open_figures():
    yield
    assert pyplot.get_fignums() == []


def epochs(accuracies: list[float]) -> list[SimpleNamespace]:
    """One record for each evaluation accuracy; the other values can be told apart."""
    return [
        SimpleNamespace(
            epoch=i, train_loss=2 / i, train_accuracy=accuracy - 0.05, eval_loss=1.5 / i, eval_accuracy=accuracy
        )
        for i, accuracy in enumerate(accuracies, 1)
    ]


def rising(count: int) -> list[float]:
    return list(np.linspace(0.4, 0.93, count))


def lines(axes) -> dict:
    return {line.get_label(): line for line in axes.lines}


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def words(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def boxes(figure: Figure, artists: list) -> list:
    figure.draw_without_rendering()
    return [artist.get_window_extent() for artist in artists]


# save


def test_save_replaces_the_file_by_a_png_of_legible_size(tmp_path):
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")
    plots.save(plots.curves(epochs([0.5, 0.6])), path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert 1200 < width < 1600
    assert 500 < height < 800
    assert list(tmp_path.iterdir()) == [path]


def test_save_that_fails_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch):
    def fail_midway(self, target, **_):
        target.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail_midway)
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        plots.save(Figure(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_save_does_not_clip_what_hangs_over_the_edge(tmp_path):
    images = np.zeros((1, 32, 32, 3), np.uint8)
    for name, title in (("short", ""), ("long", "A title that is wider than a single column")):
        plots.save(plots.image_grid(images, ["cat"], title=title), tmp_path / name)
    short, long = (struct.unpack(">I", (tmp_path / name).read_bytes()[16:20])[0] for name in ("short", "long"))
    assert long > 2 * short


# curves


@pytest.mark.parametrize("count", [1, 2, 24, 200])
def test_curves_show_every_record(tmp_path, count):
    records = epochs(rising(count))
    figure = plots.curves(records)
    loss, accuracy = figure.axes
    for axes, metric, unit in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
        for label, prefix in (("train (augmented)", "train"), ("test", "eval")):
            line = lines(axes)[label]
            assert list(line.get_xdata()) == [record.epoch for record in records]
            expected = [unit * getattr(record, f"{prefix}_{metric}") for record in records]
            np.testing.assert_allclose(line.get_ydata(), expected)
            assert count > 40 or line.get_markersize() > 0  # a line of one point shows nothing but its marker
        ticks = axes.xaxis.get_major_locator()()
        assert all(float(tick).is_integer() for tick in ticks)
    assert len(loss.lines) == 2
    plots.save(figure, tmp_path / "curves.png")


def test_curves_tell_train_and_test_apart_in_grey():
    _, accuracy = plots.curves(epochs(rising(24))).axes
    train, test = (lines(accuracy)[label] for label in ("train (augmented)", "test"))
    assert train.get_linestyle() != test.get_linestyle()
    assert train.get_marker() != test.get_marker()


def test_curves_mark_best_and_final():
    figure = plots.curves(epochs([0.5, 0.9, 0.95, 0.9375]), split="val", title="Seed 7")
    assert legend(figure) == [
        "train (augmented)",
        "val",
        "best: 95.00 % (epoch 3)",
        "final: 93.75 % (epoch 4)",
    ]
    marks = lines(figure.axes[1])
    for label, point in (("best: 95.00 % (epoch 3)", (3, 95)), ("final: 93.75 % (epoch 4)", (4, 93.75))):
        np.testing.assert_allclose(marks[label].get_xydata(), [point])
    assert figure.get_suptitle() == "Seed 7"


def test_curves_best_is_the_first_of_equals():
    assert "best: 95.00 % (epoch 1)" in legend(plots.curves(epochs([0.95, 0.9, 0.95])))


def test_curves_best_shows_around_final_when_they_lie_on_each_other():
    marks = plots.curves(epochs([0.9, 0.95, 0.949])).axes[1].lines[-2:]
    best, final = marks
    assert best.get_fillstyle() == "none"
    assert best.get_markersize() > 2 * final.get_markersize()
    assert not best.get_clip_on()
    assert not final.get_clip_on()


@pytest.mark.parametrize("accuracies", [[0.93], [0.5, 0.93]])
def test_curves_have_one_label_when_best_is_final(accuracies):
    labels = legend(plots.curves(epochs(accuracies)))
    assert labels[2:] == [f"best = final: 93.00 % (epoch {len(accuracies)})"]


def test_curves_survive_nan(tmp_path):
    figure = plots.curves(epochs([0.5, 0.8, NAN, NAN]))
    assert legend(figure)[2:] == ["best: 80.00 % (epoch 2)", f"final: {DASH} (epoch 4)"]
    left, right = figure.axes[1].get_xlim()
    assert left < 1
    assert right > 4  # a run that broke is not drawn as a shorter one
    plots.save(figure, tmp_path / "curves.png")


def test_curves_without_any_number(tmp_path):
    figure = plots.curves(epochs([NAN, NAN]))
    assert legend(figure)[2:] == [f"best = final: {DASH} (epoch 2)"]
    plots.save(figure, tmp_path / "curves.png")


def test_curves_target_is_a_dashed_labelled_line_outside_the_curves():
    figure = plots.curves(epochs(rising(24)), target=0.9)
    accuracy = figure.axes[1]
    (target,) = [line for line in accuracy.lines if set(line.get_ydata()) == {90}]
    assert target.is_dashed()
    assert words(accuracy) == ["90 %\ntarget"]
    (label,) = boxes(figure, accuracy.texts)
    assert label.x0 > accuracy.get_window_extent().x1
    assert label.x1 <= figure.bbox.x1


def test_curves_accuracy_axis_ends_at_100():
    assert plots.curves(epochs([0.98, 1.0])).axes[1].get_ylim()[1] == 100


# lr_schedule


def test_lr_schedule_draws_every_step_and_marks_the_peak(tmp_path):
    lrs = [0.001, 0.004, 0.0123, 0.006, 0.002, 0.0001]
    figure = plots.lr_schedule(lrs, steps_per_epoch=2, title="One cycle")
    (axes,) = figure.axes
    curve, peak = axes.lines
    np.testing.assert_allclose(curve.get_xydata(), list(enumerate(lrs)))
    np.testing.assert_allclose(peak.get_xydata(), [(2, 0.0123)])
    assert legend(figure) == ["peak 0.0123 at step 2 (epoch 1)"]
    assert figure.get_suptitle() == "One cycle"
    plots.save(figure, tmp_path / "lr.png")


def test_lr_schedule_counts_epochs_along_the_top():
    figure = plots.lr_schedule([0.1] * 60, steps_per_epoch=20)
    (epoch_axis,) = figure.axes[0].child_axes
    figure.draw_without_rendering()
    assert epoch_axis.get_xlim() == (0, 3)
    assert epoch_axis.get_xlabel() == "epoch"


@pytest.mark.parametrize(("lrs", "step"), [([0.1], 0), ([0.1, 0.1, 0.1], 0), ([0.1, 0.2], 1), ([0.2, 0.1], 0)])
def test_lr_schedule_peak_at_an_edge_is_not_clipped(tmp_path, lrs, step):
    figure = plots.lr_schedule(lrs, steps_per_epoch=1)
    peak = figure.axes[0].lines[1]
    assert peak.get_xdata() == [step]
    assert not peak.get_clip_on()
    plots.save(figure, tmp_path / "lr.png")


# image_grid


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(("count", "columns", "shape"), [(1, 8, (1, 1)), (8, 8, (1, 8)), (11, 4, (3, 4))])
def test_image_grid_shows_each_image_above_its_caption(count, columns, shape):
    images = noise(count)
    figure = plots.image_grid(images, [f"cat / dog\n{i} %" for i in range(count)], title="Mistakes", columns=columns)
    assert len(figure.axes) == count
    for i, axes in enumerate(figure.axes):
        np.testing.assert_array_equal(axes.images[0].get_array(), images[i])
        assert axes.images[0].get_interpolation() == "nearest"
        assert axes.get_xlabel() == f"cat / dog\n{i} %"
    corners = [axes.get_position() for axes in figure.axes]
    assert (len({round(c.y0, 6) for c in corners}), len({round(c.x0, 6) for c in corners})) == shape
    assert max(c.x1 for c in corners) > 0.9  # no room for columns that stay empty
    if count > columns:
        assert corners[columns].y0 < corners[0].y0
        assert corners[columns].x0 == pytest.approx(corners[0].x0)


def test_image_grid_gives_every_pixel_the_same_area():
    figure = plots.image_grid(noise(3), ["a", "b", "c"])
    figure.set_dpi(plots.DPI)
    for axes in figure.axes:
        assert axes.get_window_extent().size / 32 == pytest.approx([5, 5])


def test_image_grid_keeps_long_captions_apart():
    caption = "automobile / airplane\n100 %"
    figure = plots.image_grid(noise(20), [caption] * 20, title="Mistakes")
    assert figure.axes[0].get_xlabel().split() == caption.split()
    texts = [axes.xaxis.label for axes in figure.axes]
    pictures = [axes.patch for axes in figure.axes]
    drawn = boxes(figure, [*texts, *pictures, figure._suptitle])
    for i, box in enumerate(drawn):
        assert box.count_overlaps(drawn[i + 1 :]) == 0
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0


def test_image_grid_of_nothing_says_so(tmp_path):
    figure = plots.image_grid(noise(0), [], title="Mistakes")
    assert figure.get_suptitle() == "Mistakes\nnothing to show"
    assert figure.axes == []
    plots.save(figure, tmp_path / "grid.png")


def test_image_grid_wants_a_caption_for_each_image():
    with pytest.raises(ValueError, match="shorter"):
        plots.image_grid(noise(2), ["cat"])


# confusion


def luminance(color) -> float:
    """Relative luminance as WCAG defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


MATRIX = np.array([[70, 30, 0], [0, 0, 0], [1, 2, 997]])
CLASSES = ("cat", "dog", "automobile")


def test_confusion_writes_every_count_into_its_cell():
    (axes,) = plots.confusion(MATRIX, CLASSES, title="Test").axes
    at = {text.get_position(): text.get_text() for text in axes.texts}
    for (row, column), count in np.ndenumerate(MATRIX):
        assert at[column, row] == str(count)
    assert axes.get_ylabel() == "true"
    assert axes.get_xlabel().startswith("predicted")
    for axis in (axes.xaxis, axes.yaxis):
        assert tuple(label.get_text() for label in axis.get_ticklabels()) == CLASSES


def test_confusion_gives_the_accuracy_of_each_class_beside_its_row():
    (axes,) = plots.confusion(MATRIX, CLASSES).axes
    beside = {text.get_position()[1]: text.get_text() for text in axes.texts if text.get_position()[0] > 2}
    assert {row: beside[row] for row in range(3)} == {0: "70.0 %", 1: DASH, 2: "99.7 %"}


def test_confusion_colours_row_shares_so_that_mistakes_can_be_seen():
    figure = plots.confusion(MATRIX, CLASSES)
    (image,) = figure.axes[0].images
    np.testing.assert_allclose(image.get_array()[[0, 2]], [[0.7, 0.3, 0], [0.001, 0.002, 0.997]])
    brightness = image.cmap(image.norm([0, 0.01, 0.1, 1]))[:, :3].mean(1)
    assert brightness[0] - brightness[1] > 0.05
    assert (np.diff(brightness) < 0).all()


@pytest.mark.parametrize("share", range(0, 101, 5))
def test_confusion_numbers_contrast_with_their_cells(share):
    (axes,) = plots.confusion(np.array([[100 - share, share], [0, 1]]), ["cat", "dog"]).axes
    (image,) = axes.images
    for text in axes.texts[:3]:
        column, row = text.get_position()
        cell = luminance(image.cmap(image.norm(image.get_array()[row, column])))
        dark, light = sorted((cell, luminance(to_rgb(text.get_color()))))
        faint = text.get_text() == "0"
        assert (light + 0.05) / (dark + 0.05) > (2 if faint else 4.5)  # 4.5: WCAG's minimum for text


def test_confusion_zeros_step_back():
    (axes,) = plots.confusion(MATRIX, CLASSES).axes
    inks = {text.get_text(): luminance(to_rgb(text.get_color())) for text in axes.texts}
    assert inks["0"] > inks["1"] + 0.2


@pytest.mark.parametrize("matrix", [MATRIX[:1, :1], 0 * MATRIX, 50_000 * np.eye(10, dtype=int)])
def test_confusion_texts_keep_apart(tmp_path, matrix):
    figure = plots.confusion(matrix, ["automobile"] * len(matrix), title="Test")
    drawn = boxes(figure, [*figure.axes[0].texts, figure._suptitle])
    assert not any(box.count_overlaps(drawn[i + 1 :]) for i, box in enumerate(drawn))
    plots.save(figure, tmp_path / "confusion.png")


# comparison


def repeated(runs: int, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Curves of some runs; all their values differ."""
    rng = np.random.default_rng(seed)
    names = ("train_loss", "train_accuracy", "eval_loss", "eval_accuracy")
    return {name: rng.uniform(0.1, 0.9, (runs, count)) for name in names}


def drawn_lines(axes) -> list:
    """The evaluation curves and the training curves, in the order of the groups."""
    return [[line for line in axes.lines if line.get_linestyle() == style] for style in ("-", "--")]


def test_comparison_draws_means_and_bands_of_one_standard_deviation(tmp_path):
    three, one = repeated(3, 5), repeated(1, 2, seed=1)
    figure = plots.comparison([("three", three), ("one", one)], split="val", title="Seeds")
    for axes, metric, unit in zip(figure.axes, ("loss", "accuracy"), (1, 100), strict=True):
        for lines, prefix in zip(drawn_lines(axes), ("eval", "train"), strict=True):
            for line, values in zip(lines, (three, one), strict=True):
                expected = [unit * sum(column) / len(column) for column in values[f"{prefix}_{metric}"].T]
                np.testing.assert_allclose(line.get_ydata(), expected)
                assert list(line.get_xdata()) == list(range(1, len(expected) + 1))
        assert len(axes.collections) == 2  # of training and evaluation of the three; one run has no deviation
        for band, prefix in zip(axes.collections, ("train", "eval"), strict=True):
            corners = band.get_paths()[0].vertices
            for epoch, column in enumerate(three[f"{prefix}_{metric}"].T, 1):
                mean = sum(column) / 3
                deviation = math.sqrt(sum((value - mean) ** 2 for value in column) / 2)  # n - 1
                edges = corners[corners[:, 0] == epoch, 1]
                np.testing.assert_allclose(
                    (edges.min(), edges.max()), unit * np.array([mean - deviation, mean + deviation])
                )
    assert legend(figure) == ["three (n = 3)", "one (n = 1)", "val", "train (augmented)", "mean ± 1 standard deviation"]
    assert figure.get_suptitle() == "Seeds"
    plots.save(figure, tmp_path / "comparison.png")


def test_comparison_of_single_runs_speaks_of_no_deviation():
    assert len(legend(plots.comparison([("a", repeated(1, 3)), ("b", repeated(1, 3))]))) == 4


@pytest.mark.parametrize("count", [1, 24, 200])
def test_comparison_tells_eight_groups_apart_by_colour_and_by_marker(count):
    figure = plots.comparison([(f"run-{i}", repeated(1, count, i)) for i in range(8)])
    handles = figure.legends[0].legend_handles[:8]
    for lines in (*drawn_lines(figure.axes[0]), *drawn_lines(figure.axes[1]), handles):
        assert len({to_rgb(line.get_color()) for line in lines}) == len({line.get_marker() for line in lines}) == 8
    firm, faint = drawn_lines(figure.axes[1])
    assert min(line.get_linewidth() for line in firm) > 1.5 * max(line.get_linewidth() for line in faint)
    for line in firm:
        start, every = line.get_markevery()
        assert 1 <= len(range(start, count, every)) <= 13  # each has some, and none is made of them
    inks = sorted(luminance(to_rgb(line.get_color())) for line in firm)
    assert inks[-1] < 0.5  # on white


def test_comparison_goes_on_beyond_eight_groups():
    firm, _ = drawn_lines(plots.comparison([(f"run-{i}", repeated(1, 2, i)) for i in range(20)]).axes[0])
    assert len({(line.get_color(), line.get_marker()) for line in firm}) == 20


def test_comparison_takes_labels_literally(tmp_path):
    labels = ["_hidden", "$x^{$", "a_b^c", "same", "same"]
    figure = plots.comparison([(label, repeated(1, 2)) for label in labels])
    assert legend(figure)[:5] == [f"{label} (n = 1)" for label in labels]
    plots.save(figure, tmp_path / "comparison.png")  # a broken formula would raise here


def test_comparison_survives_nan_and_ends_at_100(tmp_path):
    values = repeated(2, 3)
    values["eval_loss"][0, 1] = NAN
    values["eval_accuracy"][:] = [[0.5, 0.9, 1.0], [0.6, 1.0, 0.9]]
    figure = plots.comparison([("a", values)])
    assert figure.axes[1].get_ylim()[1] == 100
    plots.save(figure, tmp_path / "comparison.png")


def test_comparison_keeps_legend_and_axes_apart_and_on_the_figure():
    for label, groups in ("long" * 10 + " (9 of 10 interrupted)", 8), ("a", 8), ("a" * 20, 16):
        figure = plots.comparison([(label, repeated(2, 3))] * groups, title="Runs")
        axes = [*(part for axes in figure.axes for part in (axes.patch, axes.xaxis.label)), figure._suptitle]
        *rest, below = boxes(figure, [*axes, figure.legends[0]])
        assert below.count_overlaps(rest) == 0
        assert figure.bbox.x0 <= below.x0
        assert below.x1 <= figure.bbox.x1
        assert rest[0].height > 0.4 * 3.6 * figure.dpi


# lr_range

LRS = np.geomspace(1e-6, 1, 61)  # ten steps a decade
BOWL = 1.5 + 0.05 * (np.log10(LRS) + 2) ** 2  # 2.3 at the start, least at 0.01
RULES = {"steepest": 1e-6, "minimum / 10": 1e-3, "valley": 1e-4, "bowl": 2e-2}


def test_lr_range_draws_both_curves_on_a_log_axis():
    figure = plots.lr_range(LRS, BOWL + 0.01, BOWL, suggestions={}, recommended=None, title="Range test")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    raw, smoothed = axes.lines
    np.testing.assert_array_equal(raw.get_xydata(), np.stack([LRS, BOWL + 0.01], 1))
    np.testing.assert_array_equal(smoothed.get_xydata(), np.stack([LRS, BOWL], 1))
    assert (raw.get_linestyle(), smoothed.get_linestyle()) == ("None", "-")
    assert legend(figure) == ["loss of one batch", "smoothed"]
    assert figure.get_suptitle() == "Range test"


def test_lr_range_marks_each_suggestion_on_the_smoothed_curve(tmp_path):
    figure = plots.lr_range(LRS, BOWL, BOWL, suggestions=RULES, recommended="bowl")
    marks = lines(figure.axes[0])
    looks = set()
    for label, lr in (
        ("steepest: 1e-06", 1e-6),
        ("minimum / 10: 0.001", 1e-3),
        ("valley: 0.0001", 1e-4),
        ("bowl: 0.02", 2e-2),
    ):
        assert label in legend(figure)
        expected = lr, 1.5 + 0.05 * (math.log10(lr) + 2) ** 2
        np.testing.assert_allclose(marks[label].get_xydata(), [expected], rtol=1e-3)
        assert marks[label].get_fillstyle() == "none"
        looks.add((marks[label].get_marker(), marks[label].get_markersize()))
    assert len({marker for marker, _ in looks}) == len({size for _, size in looks}) == 4
    plots.save(figure, tmp_path / "range.png")


def test_lr_range_emphasises_the_recommended_one():
    figure = plots.lr_range(LRS, BOWL, BOWL, suggestions=RULES, recommended="valley")
    upright = [line for line in figure.axes[0].lines if list(line.get_ydata()) == [0, 1]]
    assert [(set(line.get_xdata()), line.get_label()) for line in upright] == [({1e-4}, "recommended: valley")]
    assert "recommended: valley" in legend(figure)


def test_lr_range_shows_what_each_of_several_tests_recommends():
    figure = plots.lr_range(LRS, BOWL, BOWL, suggestions=RULES, recommended="bowl", picks=[1e-3, 2e-3])
    (rug,) = [line for line in figure.axes[0].lines if line.get_marker() == "|"]
    assert (list(rug.get_xdata()), rug.get_label()) == ([1e-3, 2e-3], "recommended by 2 tests alone")
    alone = plots.lr_range(LRS, BOWL, BOWL, suggestions=RULES, recommended="bowl")
    assert "|" not in {line.get_marker() for line in alone.axes[0].lines}


def test_lr_range_keeps_the_bowl_readable_when_the_loss_explodes(tmp_path):
    exploded = np.where(LRS > 0.05, 1e6, BOWL)
    exploded[-3:] = NAN
    figure = plots.lr_range(LRS, exploded, exploded, suggestions=RULES, recommended="bowl")
    bottom, top = figure.axes[0].get_ylim()
    assert 1.2 < bottom < 1.5
    assert 2.3 < top < 2.8
    plots.save(figure, tmp_path / "range.png")


@pytest.mark.parametrize("slope", [-0.2, 0, 0.2])
def test_lr_range_without_a_minimum_has_limits_that_show_the_start(tmp_path, slope):
    losses = 2.3 + slope * np.log10(LRS / LRS[0])
    figure = plots.lr_range(LRS, losses, losses, suggestions={}, recommended=None)
    bottom, top = figure.axes[0].get_ylim()
    assert bottom < losses.min()
    assert 2.4 < top < 3
    plots.save(figure, tmp_path / "range.png")


def test_lr_range_shows_raw_losses_under_the_smoothed_minimum():
    raw = BOWL.copy()
    raw[40] = 0.9
    figure = plots.lr_range(LRS, raw, BOWL, suggestions={}, recommended=None)
    assert figure.axes[0].get_ylim()[0] < 0.9
