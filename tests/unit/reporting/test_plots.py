import math
import struct
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from s10_resnet.reporting import plots, sweep_plots

NAN = math.nan
DASH = "\N{EN DASH}"
ONE_RUN = {"n": 1, "mean": 0.9, "interval": None, "values": [0.9]}


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


def test_save_replaces_the_file_by_a_png_of_legible_size(tmp_path):
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")
    plots.save(plots.plot_curves(epochs([0.5, 0.6])), path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert 1200 < width < 1600
    assert 500 < height < 800
    assert list(tmp_path.iterdir()) == [path]


DRAW = """
import hashlib, sys
from pathlib import Path
from types import SimpleNamespace
from s10_resnet.reporting import figures, html_report, model_card, plots, sweep_plots
assert "matplotlib" not in sys.modules
one = SimpleNamespace(epoch=1, train_loss=2.0, train_accuracy=0.5, eval_loss=1.5, eval_accuracy=0.6)
figure = plots.plot_curves([one], target=0.9, title="$x^{")
plots.save(figure, Path("curves.png"))
plots.save(plots.plot_lr_range([1e-3, 1e-2], [1, 2], [1, 2], suggestions={}, recommended=None), Path("range.png"))
Path("curves.svg").write_text(plots.to_svg(figure))
assert "matplotlib.pyplot" not in sys.modules
import matplotlib
print(matplotlib.rcParams["text.usetex"], matplotlib.rcParams["lines.linewidth"])
"""


def test_a_matplotlibrc_changes_no_picture_and_is_left_alone(tmp_path):
    odd = "text.usetex: True\nlines.linewidth: 9\nfont.family: nonesuch\nsavefig.transparent: True\nbackend: TkAgg\n"
    odd += "axes.facecolor: red\nfigure.constrained_layout.use: True\nsvg.fonttype: path\naxes.grid: True\n"
    drawn = []
    for name, rc, said in (("plain", "", "False 1.5\n"), ("odd", odd, "True 9.0\n")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "matplotlibrc").write_text(rc)  # in the working directory, where matplotlib looks first
        command = [sys.executable, "-c", DRAW]
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, said, "")
        drawn.append([(folder / file).read_bytes() for file in ("curves.png", "range.png", "curves.svg")])
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("count", [1, 2, 24, 200])
def test_curves_show_every_record(tmp_path, count):
    records = epochs(rising(count))
    figure = plots.plot_curves(records)
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
    looks = {(line.get_linestyle(), line.get_marker(), line.get_color()) for line in loss.lines}
    assert all(len(set(values)) == 2 for values in zip(*looks, strict=True))  # they can be told apart in grey
    plots.save(figure, tmp_path / "curves.png")


def test_curves_mark_best_and_final():
    figure = plots.plot_curves(epochs([0.5, 0.9, 0.95, 0.9375]), split="val", title="Seed 7")
    assert legend(figure) == [
        "train (augmented)",
        "val",
        "best: 95.00 % (epoch 3)",
        "final: 93.75 % (epoch 4)",
    ]
    marks = lines(figure.axes[1])
    for label, point in (("best: 95.00 % (epoch 3)", (3, 95)), ("final: 93.75 % (epoch 4)", (4, 93.75))):
        np.testing.assert_allclose(marks[label].get_xydata(), [point])
        assert not marks[label].get_clip_on()
    ring, diamond = figure.axes[1].lines[-2:]  # which may lie on each other
    assert ring.get_fillstyle() == "none"
    assert ring.get_markersize() > 2 * diamond.get_markersize()
    assert figure.get_suptitle() == "Seed 7"


@pytest.mark.parametrize(
    ("accuracies", "labels"),
    [
        ([0.93], ["best = final: 93.00 % (epoch 1)"]),
        ([0.5, 0.8, NAN], ["best: 80.00 % (epoch 2)", f"final: {DASH} (epoch 3)"]),
        ([NAN, NAN], [f"best = final: {DASH} (epoch 2)"]),
    ],
)
def test_curves_survive_nan(accuracies, labels):
    figure = plots.plot_curves(epochs(accuracies))
    assert legend(figure)[2:] == labels
    assert figure.axes[1].get_xlim()[1] > len(accuracies)  # a run that broke is not drawn as a shorter one


def test_curves_target_is_a_dashed_line_that_the_legend_explains():
    figure = plots.plot_curves(epochs(rising(24)), target=0.9)
    (target,) = [line for line in figure.axes[1].lines if set(line.get_ydata()) == {90}]
    assert target.is_dashed()
    assert "target: 90 %" in legend(figure)


def test_lr_schedule_draws_every_step_and_marks_the_peak(tmp_path):
    lrs = [0.001, 0.004, 0.0123, 0.006, 0.002, 0.0001]
    figure = plots.plot_lr_schedule(lrs, steps_per_epoch=2, title="One cycle")
    (axes,) = figure.axes
    curve, peak = axes.lines
    np.testing.assert_allclose(curve.get_xydata(), list(enumerate(lrs)))
    np.testing.assert_allclose(peak.get_xydata(), [(2, 0.0123)])
    assert legend(figure) == ["peak 0.0123 at step 2 (epoch 1)"]
    assert figure.get_suptitle() == "One cycle"
    assert not peak.get_clip_on()  # it may be at an edge
    plots.save(figure, tmp_path / "lr.png")
    (epoch_axis,) = axes.child_axes
    figure.draw_without_rendering()
    assert epoch_axis.get_xlim() == (0, 3)
    assert epoch_axis.get_xlabel() == "epoch"


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)


def places(pixels: np.ndarray, images: np.ndarray) -> list[tuple[int, int]]:
    """The rows and columns of device pixels at which images begin, every pixel of theirs as one of 5 x 5."""
    found = []
    for large in np.kron(images, np.ones((5, 5, 1), np.uint8)):
        corners = (pixels[:-159, :-159] == large[0, 0]).all(2) & (pixels[159:, 159:] == large[-1, -1]).all(2)
        (place,) = [(y, x) for y, x in np.argwhere(corners) if (pixels[y : y + 160, x : x + 160] == large).all()]
        found.append(place)
    return found


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (8, (1, 8)), (19, (3, 8))])
def test_images_shows_each_image_above_its_caption(tmp_path, count, shape):
    images = noise(count)
    captions = [f"cat / dog\n{i} %" for i in range(count)]
    figure = plots.plot_images(images, captions, title="Images")
    assert figure.get_suptitle() == "Images"
    (axes,) = figure.axes
    assert words(axes) == captions
    corners = places(axes.images[0].get_array(), images)
    rows, columns = (sorted(set(values)) for values in zip(*corners, strict=True))
    assert (len(rows), len(columns)) == shape
    assert corners == [(row, column) for row in rows for column in columns][:count]
    for (y, x), text in zip(corners, axes.texts, strict=True):
        assert text.get_position()[0] == x + 80
        assert y + 160 < text.get_position()[1] < y + 180
    plots.save(figure, tmp_path / "images.png")
    with Image.open(tmp_path / "images.png") as picture:
        drawn = places(np.asarray(picture.convert("RGB")), images)
        assert picture.width == (max(1, shape[1]) - 1) * 190 + 164 + 30  # no room for columns that stay empty
    offsets = {(y - v, x - u) for (y, x), (v, u) in zip(drawn, corners, strict=True)}
    assert len(offsets) == 1


def test_no_images():
    figure = plots.plot_images(noise(0), [], title="Images")
    assert figure.get_suptitle() == "Images\nno images"
    assert "no images" in plots.to_svg(figure)  # and no warning


def test_images_keeps_long_captions_apart():
    caption = "automobile / airplane\n100 %"
    images = noise(20)
    figure = plots.plot_images(images, [caption] * 20, title="Images")
    (axes,) = figure.axes
    assert words(axes)[0].split() == caption.split()
    corners = np.array(places(axes.images[0].get_array(), images))[:, ::-1]
    pictures = [Bbox(axes.transData.transform([corner, corner + 160])) for corner in corners]
    drawn = [*pictures, *boxes(figure, [*axes.texts, figure._suptitle])]
    for i, box in enumerate(drawn):
        assert box.count_overlaps(drawn[i + 1 :]) == 0
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0


def luminance(color) -> float:
    """Relative luminance as WCAG defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


MATRIX = np.array([[70, 30, 0], [0, 0, 0], [1, 2, 997]])
CLASSES = ("cat", "dog", "automobile")


def cells(figure: Figure) -> dict[tuple[float, float], object]:
    """The texts of a confusion matrix by the middle of their cell."""
    return {text.get_position(): text for text in figure.axes[0].texts}


def test_confusion_writes_every_count_into_its_cell():
    figure = plots.plot_confusion_matrix(MATRIX, CLASSES, title="Test")
    axes, bar = figure.axes
    for (row, column), count in np.ndenumerate(MATRIX):
        assert cells(figure)[column + 0.5, row + 0.5].get_text() == str(count)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert axes.yaxis_inverted()  # the first class on top
    for axis in (axes.xaxis, axes.yaxis):
        assert tuple(label.get_text() for label in axis.get_ticklabels()) == CLASSES
        np.testing.assert_array_equal(axis.get_ticklocs(), [0.5, 1.5, 2.5])
    assert bar.get_ylabel() == "share of the row"
    beside = {y: text.get_text() for (x, y), text in cells(figure).items() if x > 3}
    assert [beside[row + 0.5] for row in range(3)] == ["70.0 %", DASH, "99.7 %"]


def on_white(mesh, share: float) -> np.ndarray:
    *color, opacity = mesh.cmap(mesh.norm(share))
    return opacity * np.array(color) + 1 - opacity


def test_confusion_colors_row_shares_so_that_errors_can_be_seen():
    figure = plots.plot_confusion_matrix(MATRIX, CLASSES)
    (mesh,) = figure.axes[0].collections
    np.testing.assert_allclose(mesh.get_array()[[0, 2]], [[0.7, 0.3, 0], [0.001, 0.002, 0.997]])
    brightness = [on_white(mesh, share).mean() for share in (0, 0.001, 0.01, 0.1, 1)]
    assert brightness[0] == 1
    assert (np.diff(brightness) < -0.03).all()
    bar = figure.axes[1].yaxis
    shares = [float(label.get_text().removesuffix(" %")) / 100 for label in bar.get_ticklabels()]
    assert len(shares) == 7
    np.testing.assert_allclose(bar.get_ticklocs(), shares)


def test_confusion_numbers_contrast_with_their_cells():
    for share in range(0, 101, 5):
        figure = plots.plot_confusion_matrix(np.array([[100 - share, share], [0, 1]]), ["cat", "dog"])
        (mesh,) = figure.axes[0].collections
        for (column, row), text in list(cells(figure).items())[:3]:
            cell = luminance(on_white(mesh, mesh.get_array()[int(row), int(column)]))
            dark, light = sorted((cell, luminance(to_rgb(text.get_color()))))
            faint = text.get_text() == "0"
            assert (light + 0.05) / (dark + 0.05) > (2 if faint else 4.5)  # 4.5: WCAG's minimum for text


def test_predictions_show_image_heat_map_and_probabilities(tmp_path):
    images, maps = noise(2), np.random.default_rng(1).random((2, 4, 4))
    tops = [[("cat", 0.997), ("dog", 0.002)], [("truck", 1.0), ("ship", 0.0)]]
    names = ["$x^{.png", "a_very_long_name_of_a_file.png"]
    figure = plots.plot_predictions(list(images), maps, names, tops, title="Two images")
    for row, name, top in zip(range(2), ["$x^{.png", "a_very_lo...a_file.png"], tops, strict=True):
        left, middle, bars = figure.axes[3 * row : 3 * row + 3]
        np.testing.assert_array_equal(left.images[0].get_array(), images[row])
        np.testing.assert_array_equal(middle.images[1].get_array(), maps[row])
        assert (left.get_title(), middle.get_title()) == (name, f"Grad-CAM: {top[0][0]}")
        assert [bar.get_width() for bar in bars.patches] == [100 * share for _, share in top]
        assert words(bars) == [f"{100 * share:.1f} %" for _, share in top]
        assert bars.get_xlim() == (0, 100)
        assert [label.get_text() for label in bars.get_yticklabels()] == [label for label, _ in top]
    plots.save(figure, tmp_path / "predictions.png")
    assert max(box.x1 for box in boxes(figure, figure.axes[5].texts)) <= figure.bbox.x1


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
    figure = plots.plot_comparison([("three", three), ("one", one)], split="val", title="Seeds")
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


@pytest.mark.parametrize("count", [1, 24, 200])
def test_comparison_tells_eight_groups_apart_by_colour_and_by_marker(count):
    figure = plots.plot_comparison([(f"run-{i}", repeated(1, count, i)) for i in range(8)])
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
    assert len(legend(figure)) == 8 + 2  # single runs have no deviation


def test_comparison_takes_labels_literally_survives_nan_and_ends_at_100(tmp_path):
    values = repeated(2, 3)
    values["eval_loss"][0, 1] = NAN
    values["eval_accuracy"][:] = [[0.5, 0.9, 1.0], [0.6, 1.0, 0.9]]
    labels = ["_hidden", "$x^{$", "a_b^c", "same", "same"]
    figure = plots.plot_comparison([(label, values) for label in labels])
    assert legend(figure)[:5] == [f"{label} (n = 2)" for label in labels]
    assert figure.axes[1].get_ylim()[1] == 100
    plots.save(figure, tmp_path / "comparison.png")  # a broken formula would raise here


def test_comparison_keeps_legend_and_axes_apart_and_on_the_figure():
    for label, groups in ("long" * 10 + " (9 of 10 interrupted)", 8), ("a", 8), ("a" * 20, 16):
        figure = plots.plot_comparison([(label, repeated(2, 3))] * groups, title="Runs")
        axes = [*(part for axes in figure.axes for part in (axes.patch, axes.xaxis.label)), figure._suptitle]
        *rest, below = boxes(figure, [*axes, figure.legends[0]])
        assert below.count_overlaps(rest) == 0
        assert figure.bbox.x0 <= below.x0
        assert below.x1 <= figure.bbox.x1
        assert rest[0].height > 0.4 * 3.6 * figure.dpi


FORMULA = "$\\x$"  # which matplotlib could not draw as one


@pytest.mark.parametrize(
    "plot",
    [
        lambda: plots.plot_curves(epochs([0.5]), split=FORMULA, title=FORMULA),
        lambda: plots.plot_lr_schedule([0.1], steps_per_epoch=1, title=FORMULA),
        lambda: plots.plot_images(noise(1), [FORMULA], title=FORMULA),
        lambda: plots.plot_confusion_matrix(np.eye(2, dtype=int), [FORMULA, "dog"], title=FORMULA),
        lambda: plots.plot_predictions(
            list(noise(1)), np.ones((1, 4, 4)), [FORMULA], [[(FORMULA, 1.0)]], title=FORMULA
        ),
        lambda: plots.plot_lr_range(LRS, BOWL, BOWL, suggestions={FORMULA: 0.01}, recommended=FORMULA, title=FORMULA),
        lambda: plots.plot_comparison([(FORMULA, repeated(2, 3))], split=FORMULA, title=FORMULA),
        lambda: sweep_plots.plot_sweep(
            {
                "settings": {},
                "variants": [
                    {"label": FORMULA, "changes": {}, "statistics": dict.fromkeys(sweep_plots.LOOKS, ONE_RUN)}
                ],
            },
            title=FORMULA,
        ),
    ],
)
def test_no_figure_takes_a_text_for_a_formula(plot, tmp_path):
    figure = plot()
    plots.save(figure, tmp_path / "figure.png")
    texts = figure.findobj(Text)
    assert [text.get_text() for text in texts].count(FORMULA) > 0
    assert not any(text.get_parse_math() for text in texts)


LRS = np.geomspace(1e-6, 1, 61)  # ten steps a decade
BOWL = 1.5 + 0.05 * (np.log10(LRS) + 2) ** 2  # 2.3 at the start, least at 0.01
RULES = {"steepest": 1e-6, "min_over_10": 1e-3, "valley": 1e-4, "bowl": 2e-2}


def test_lr_range_marks_each_suggestion_on_the_smoothed_curve(tmp_path):
    figure = plots.plot_lr_range(LRS, BOWL + 0.01, BOWL, suggestions=RULES, recommended="bowl", title="Range test")
    assert (figure.axes[0].get_xscale(), figure.get_suptitle()) == ("log", "Range test")
    marks = lines(figure.axes[0])
    np.testing.assert_array_equal(marks["loss of one batch"].get_xydata(), np.stack([LRS, BOWL + 0.01], 1))
    np.testing.assert_array_equal(marks["smoothed"].get_xydata(), np.stack([LRS, BOWL], 1))
    looks = set()
    for name, lr in RULES.items():
        label = f"{name}: {lr:.3g}"
        assert label in legend(figure)
        expected = lr, 1.5 + 0.05 * (math.log10(lr) + 2) ** 2
        np.testing.assert_allclose(marks[label].get_xydata(), [expected], rtol=1e-3)
        assert marks[label].get_fillstyle() == "none"
        looks.add((marks[label].get_marker(), marks[label].get_markersize()))
    assert len({marker for marker, _ in looks}) == len({size for _, size in looks}) == 4
    upright = [line for line in figure.axes[0].lines if list(line.get_ydata()) == [0, 1]]
    assert [(set(line.get_xdata()), line.get_label()) for line in upright] == [({2e-2}, "recommended: bowl")]
    plots.save(figure, tmp_path / "range.png")


def test_lr_range_keeps_the_bowl_readable_when_the_loss_explodes(tmp_path):
    exploded = np.where(LRS > 0.05, 1e6, BOWL)
    exploded[-3:] = NAN
    raw = exploded.copy()
    raw[40] = 0.9
    figure = plots.plot_lr_range(LRS, raw, exploded, suggestions=RULES, recommended="bowl")
    bottom, top = figure.axes[0].get_ylim()
    assert 0.5 < bottom < 0.9  # raw losses under the smoothed minimum are shown
    assert 2.3 < top < 2.8
    plots.save(figure, tmp_path / "range.png")
