import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import chain, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from s10_resnet.config import Config
from s10_resnet.reporting import charts
from s10_resnet.reporting import html_report as page
from s10_resnet.training import optim
from s10_resnet.training.state import EpochRecord

HOSTILE = "</script><script>alert('1')</script>&<b>"
VOID = {"meta", "img", "br"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1000,3000",
)


class Node:
    """An element with what is in it."""

    def __init__(self, tag, attributes):
        self.tag, self.attributes, self.inside = tag, attributes, []

    @property
    def text(self):
        return "".join(part if isinstance(part, str) else part.text for part in self.inside).strip()

    def walk(self):
        yield self
        for part in self.inside:
            if isinstance(part, Node):
                yield from part.walk()

    def all(self, tag=None, **attributes):
        wanted = {key.strip("_").replace("_", "-"): value for key, value in attributes.items()}
        return [
            node
            for node in self.walk()
            if tag in (None, node.tag)
            and all(value in (node.attributes.get(key) or "").split() for key, value in wanted.items())
        ]

    def one(self, tag=None, **attributes):
        (node,) = self.all(tag, **attributes)
        return node

    def rows(self):
        return [[cell.text for cell in row.inside if isinstance(cell, Node)] for row in self.all("tr")]


class Reader(HTMLParser):
    """Makes a tree of a page, and fails where an element is not closed or closed twice."""

    def __init__(self):
        super().__init__()
        self.root = Node("root", {})
        self.open = [self.root]

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        node = Node(tag, dict(attributes))
        self.open[-1].inside.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag, attributes):
        self.open[-1].inside.append(Node(tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].inside.append(data)


def parse(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == [reader.root], "an element is left open"
    return reader.root


def given(epochs=24, classes=10, images=200, split="test", **changes):
    """What a run hands over, made up."""
    rng = np.random.default_rng(3)
    history = [
        EpochRecord(
            epoch=epoch + 1,
            train_loss=2 / (epoch + 1) ** 0.5 + 0.1 * rng.random(),
            train_accuracy=1 - 0.6 / (epoch + 1) ** 0.5 - 0.01 * rng.random(),
            eval_loss=2.2 / (epoch + 1) ** 0.5 + 0.1 * rng.random(),
            eval_accuracy=1 - 0.7 / (epoch + 1) ** 0.5 - 0.02 * rng.random(),
            lr=1e-3,
            train_seconds=10.0,
            eval_seconds=1.0,
            images_per_second=300 + 5 * rng.random(),
        )
        for epoch in range(epochs)
    ]
    best = max(history, key=lambda record: record.eval_accuracy)
    labels = rng.integers(0, classes, images)
    probabilities = rng.dirichlet(np.ones(classes), images) + 0.3 * np.eye(classes)[labels]
    arguments = {
        "summary": {
            "status": "completed",
            "dataset": "cifar10",
            "epochs": epochs,
            "parameters": 6_573_120,
            "seed": 5,
            "max_lr": 0.005,
            "final_train_accuracy": history[-1].train_accuracy,
            f"final_{split}_accuracy": history[-1].eval_accuracy,
            "best_train_accuracy": max(record.train_accuracy for record in history),
            f"best_{split}_accuracy": best.eval_accuracy,
            "best_epoch": best.epoch,
            "train_images": 50_000,
            f"{split}_images": images,
            "train_seconds": 4028.75,
            "eval_seconds": 75.0,
            "images_per_second": 297.86,
            "workers": 2,
            "device": "cpu",
            "precision": "bf16",
            "processes": 1,
            "versions": {"python": "3.11.7", "torch": "2.15.0"},
            "git_commit": "86f89b2d37e1",
            "hardware": {"accelerator": None, "cpu": "AMD EPYC", "threads": 2, "system": "Linux x86_64"},
        },
        "config": Config(name="a-run").to_json(),
        "history": history,
        "split": split,
        "lrs": optim.planned_lrs(
            max_lr=0.005, total_steps=epochs * 98, pct_start=0.2, anneal="cos", div_factor=25.0, final_div_factor=1e4
        ),
        "steps_per_epoch": 98,
        "images": rng.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8),
        "labels": labels,
        "classes": tuple(f"class-{index}" for index in range(classes)),
        "probabilities": probabilities / probabilities.sum(1, keepdims=True),
        "samples": rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8),
        "sample_names": [f"sample-{index}" for index in range(40)],
    }
    return {**arguments, **changes}


def written(folder, **arguments):
    page.write(folder / "report.html", **arguments)
    return parse(folder / "report.html")


def ruler(chart, kind):
    """The value at a place, read off the ticks of an axis as a reader would."""
    axis = "y" if kind == "ytick" else "x"
    ticks = [(float(t.attributes[axis]), float(t.text.replace(",", ""))) for t in chart.all("text", class_=kind)]
    assert len(ticks) >= 2
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(ticks)]
    np.testing.assert_allclose(slopes, slopes[0], rtol=0.01)  # places have two decimals
    (first, low), (last, high) = ticks[0], ticks[-1]
    return lambda place: low + (place - first) * (high - low) / (last - first)


def path_points(chart, look):
    """What a curve's path passes through, as one list a stroke."""
    d = chart.one("g", class_=look).one("path").attributes["d"]
    return [[tuple(map(float, pair.split())) for pair in stroke.split("L")] for stroke in d.split("M")[1:]]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A page of 24 epochs, and what it was made of."""
    arguments = given()
    folder = tmp_path_factory.mktemp("run")
    tree = written(folder, **arguments)
    return SimpleNamespace(path=folder / "report.html", tree=tree, **arguments)


def test_the_page_is_sound_and_alone(run):
    text = run.path.read_text(encoding="utf-8")
    assert len(text) < 500_000
    for forbidden in ("http:", "https:", "//cdn", "url(", "@import", "fetch(", "innerHTML", "XMLHttpRequest"):
        assert forbidden not in text
    assert not run.tree.all("link")
    for node in run.tree.walk():
        for name in ("src", "href", "srcset", "data", "action", "xlink:href"):
            assert node.attributes.get(name, "data:image/png;base64,").startswith("data:image/png;base64,")
        assert not [name for name in node.attributes if name.startswith("on")]

    policy = next(node.attributes["content"] for node in run.tree.all("meta") if "http-equiv" in node.attributes)
    rules = {name: sources for name, *sources in map(str.split, policy.split(";"))}
    assert rules["default-src"] == ["'none'"]
    assert rules["img-src"] == ["data:"]
    assert rules["style-src"] == rules["script-src"] == ["'unsafe-inline'"]


def test_what_a_screen_reader_needs(run):
    assert run.tree.one("html").attributes["lang"] == "en"
    assert run.tree.one("title").text == "a-run: ResNet-9 on CIFAR-10"
    assert run.tree.one("h1").text == "a-run"
    assert all(image.attributes["alt"] for image in run.tree.all("img"))
    assert all(
        svg.attributes.get("aria-label") or svg.attributes["aria-hidden"] == "true" for svg in run.tree.all("svg")
    )
    ids = [node.attributes["id"] for node in run.tree.walk() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    for node in run.tree.walk():
        assert node.attributes.get("aria-labelledby", ids[0]) in ids


def test_the_headline_is_the_summary(run):
    shown = {box.one("dt").text: [dd.text for dd in box.all("dd")] for box in run.tree.one("dl").all("div")}
    summary = run.summary
    final, best = summary["final_test_accuracy"], summary["best_test_accuracy"]
    assert final != best
    assert shown["final test accuracy"] == [f"{100 * final:.2f} %", "epoch 24"]
    assert shown["best test accuracy"] == [f"{100 * best:.2f} %", f"epoch {summary['best_epoch']}"]
    assert shown["training steps"] == ["1 h 07 min", "and 1 min 15 s of evaluation"]
    assert shown["speed"] == ["298", "images/s"]
    assert shown["parameters"][0] == "6,573,120"
    assert shown["epochs"] == ["24", "of 50,000 images"]
    assert shown["peak learning rate"] == ["0.005", "seed 5"]
    assert not run.tree.all("p", class_="note")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "synthetic"}, ["Synthetic data."]),
        ({"status": "interrupted"}, ["Interrupted.", "2 of 24 epochs"]),
        ({"status": "failed"}, ["Failed.", "2 of 24 epochs"]),
    ],
)
def test_what_must_not_be_missed(tmp_path, changes, words):
    arguments = given(epochs=2)
    arguments["summary"].update(changes)
    note = written(tmp_path, **arguments).one("p", class_="note")
    assert all(word in note.text for word in words)


def test_held_out_images_are_not_called_test_images(tmp_path):
    tree = written(tmp_path, **given(epochs=2, split="val"))
    assert "final val accuracy" in [dt.text for dt in tree.all("dt")]
    results = tree.all("section")[:4]  # the settings speak of the range test
    words = [part for whole in results for node in whole.walk() for part in node.inside if isinstance(part, str)]
    assert any(re.search(r"\bval\b", part) for part in words)
    assert not [part for part in words if re.search(r"\btest\b", part)]


def test_the_epochs_as_a_table(run):
    _, *rows = run.tree.one("table", id="epochs").rows()
    for row, record in zip(rows, run.history, strict=True):
        assert row[0] == str(record.epoch)
        losses = [float(text) for text in row[1:3]]
        np.testing.assert_allclose(losses, [record.train_loss, record.eval_loss], atol=6e-5)
        shares = [float(text.removesuffix(" %")) / 100 for text in row[3:5]]
        np.testing.assert_allclose(shares, [record.train_accuracy, record.eval_accuracy], atol=6e-5)


@pytest.mark.parametrize("epochs", [2, 24, 40, 200])
@pytest.mark.parametrize(("metric", "unit"), [("loss", 1), ("accuracy", 100)])
def test_curves_lie_where_their_ticks_say(tmp_path, epochs, metric, unit):
    arguments = given(epochs=epochs)
    chart = written(tmp_path, **arguments).one("div", id=metric)
    x, y = ruler(chart, "xtick"), ruler(chart, "ytick")
    for look in ("train", "eval"):
        (points,) = path_points(chart, look)
        values = [unit * getattr(record, f"{look}_{metric}") for record in arguments["history"]]
        np.testing.assert_allclose([x(px) for px, _ in points], range(1, epochs + 1), atol=0.005 * epochs)
        np.testing.assert_allclose([y(py) for _, py in points], values, atol=0.001 * unit)
        dots = chart.one("g", class_=look).all(class_="dot")
        assert len(dots) == (epochs if epochs <= charts.MAX_DOTS else 0)
        for dot, point in zip(dots, points, strict=False):
            if dot.tag == "rect":
                middle = [
                    float(dot.attributes[a]) + float(dot.attributes[b]) / 2
                    for a, b in (("x", "width"), ("y", "height"))
                ]
            else:
                middle = [float(dot.attributes[name]) for name in ("cx", "cy")]
            np.testing.assert_allclose(middle, point, atol=0.011)


def test_nothing_is_drawn_outside(run):
    for key in ("loss", "accuracy", "lr", "speed"):
        chart = run.tree.one("div", id=key)
        for look in {"train", "eval"} & {node.attributes.get("class") for node in chart.all("g")}:
            for px, py in chain.from_iterable(path_points(chart, look)):
                assert charts.LEFT <= px <= charts.RIGHT
                assert charts.TOP <= py <= charts.BOTTOM
    texts = [node.text for node in run.tree.one("div", id="accuracy").all("text", class_="ytick")]
    assert float(texts[-1]) <= 100


def test_curves_differ_in_more_than_colour(run):
    style = run.tree.one("style").text
    assert re.search(r"\.train \.line \{[^}]*stroke-dasharray", style)
    assert not re.search(r"\.eval \.line \{[^}]*stroke-dasharray", style)
    assert {dot.tag for dot in run.tree.one("div", id="loss").one("g", class_="train").all(class_="dot")} == {"rect"}


def test_the_learning_rate(run):
    chart = run.tree.one("div", id="lr")
    (points,) = path_points(chart, "eval")
    assert len(points) <= charts.MAX_DRAWN
    x, y = ruler(chart, "xtick"), ruler(chart, "ytick")
    steps = np.array([x(px) for px, _ in points])
    np.testing.assert_allclose([steps[0], steps[-1]], [0, len(run.lrs) - 1], atol=1)
    expected = np.interp(steps, range(len(run.lrs)), run.lrs)
    np.testing.assert_allclose([y(py) for _, py in points], expected, atol=0.005 * max(run.lrs))
    assert min(py for _, py in points) == pytest.approx(y_of(chart, 0.005), abs=0.02)

    hover = json.loads(run.tree.one("script", id="hover").text)[2]
    assert hover["x"] == list(range(24 * 98))
    np.testing.assert_allclose([float(text) for text in hover["texts"][0]], run.lrs, rtol=6e-4)


def y_of(chart, value):
    return {float(node.text): float(node.attributes["y"]) for node in chart.all("text", class_="ytick")}[value]


def test_a_long_run_is_thinned(tmp_path):
    lrs = np.full(1_000_000, 1e-3)
    lrs[123_457] = 5e-3
    arguments = given(epochs=1500, lrs=lrs)
    tree = written(tmp_path, **arguments)
    assert (tmp_path / "report.html").stat().st_size < 1_500_000
    hover = json.loads(tree.one("script", id="hover").text)[2]
    assert len(hover["x"]) == len(hover["texts"][0]) <= charts.MAX_POINTS
    assert hover["texts"][0][hover["x"].index(123_457)] == "0.005"
    assert (hover["x"][0], hover["x"][-1]) == (0, 999_999)
    assert max(np.diff(hover["x"])) <= 101
    (points,) = path_points(tree.one("div", id="lr"), "eval")
    assert len(points) <= charts.MAX_DRAWN
    assert min(py for _, py in points) == y_of(tree.one("div", id="lr"), 0.005)
    _, *rows = tree.one("table", id="epochs").rows()
    assert len(rows) <= charts.MAX_DRAWN
    assert {"1", "1500", str(arguments["summary"]["best_epoch"])} <= {row[0] for row in rows}


def test_one_epoch(tmp_path):
    arguments = given(epochs=1, lrs=[0.001], steps_per_epoch=1)
    tree = written(tmp_path, **arguments)
    for key in ("loss", "accuracy"):
        chart = tree.one("div", id=key)
        assert [tick.text for tick in chart.all("text", class_="xtick")] == ["1"]
        place = float(chart.one("text", class_="xtick").attributes["x"])
        assert place == (charts.LEFT + charts.RIGHT) / 2
        for look in ("train", "eval"):
            ((point,),) = path_points(chart, look)
            assert point[0] == place
            value = getattr(arguments["history"][0], f"{look}_{key}") * (100 if key == "accuracy" else 1)
            assert ruler(chart, "ytick")(point[1]) == pytest.approx(value, abs=0.1)
            assert len(chart.one("g", class_=look).all(class_="dot")) == 1


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
def test_curves_that_stay_level(tmp_path, value):
    record = EpochRecord(1, value, value, value, value, 1e-3, 1.0, 1.0, 50.0)
    chart = written(tmp_path, **given(epochs=1, history=[record])).one("div", id="accuracy")
    ((point,),) = path_points(chart, "eval")
    assert ruler(chart, "ytick")(point[1]) == pytest.approx(100 * value)
    assert max(float(tick.text) for tick in chart.all("text", class_="ytick")) <= 100


def test_a_value_that_is_no_number_leaves_a_gap(tmp_path):
    arguments = given(epochs=6)
    broken = arguments["history"][2].__dict__ | {"train_loss": float("nan")}
    arguments["history"][2] = EpochRecord(**broken)
    tree = written(tmp_path, **arguments)
    assert [len(stroke) for stroke in path_points(tree.one("div", id="loss"), "train")] == [2, 3]
    assert json.loads(tree.one("script", id="hover").text)[0]["texts"][0][2] is None


@pytest.mark.parametrize("classes", [3, 10])
def test_classes_are_counted(tmp_path, classes):
    arguments = given(epochs=2, classes=classes, images=300)
    arguments["labels"][arguments["labels"] == 1] = 0  # one class without images
    tree = written(tmp_path, **arguments)
    names = arguments["classes"]
    pairs = list(zip(arguments["labels"], arguments["probabilities"].argmax(1), strict=True))
    head, *matrix = tree.one("table", id="confusion").rows()
    _, *per_class = tree.one("table", id="per-class").rows()
    assert head[1:-1] == list(names)
    assert sum(true != predicted for true, predicted in pairs) > 20
    for label, (row, line) in enumerate(zip(matrix, per_class, strict=True)):
        counts = [sum(pair == (label, predicted) for pair in pairs) for predicted in range(classes)]
        total = sum(true == label for true, _ in pairs)
        accuracy = f"{100 * counts[label] / total:.1f} %" if total else "\N{EN DASH}"
        assert row == [names[label], *map(str, counts), accuracy]
        assert line[:4] == [names[label], str(total), str(counts[label]), accuracy]
        worst = max(count for predicted, count in enumerate(counts) if predicted != label)
        if worst:
            name, count = re.fullmatch(r"(.+) \((\d+)\)", line[5]).groups()
            assert counts[names.index(name)] == worst == int(count)
            assert name != names[label]
    for cells in tree.one("table", id="confusion").all("tr")[1:]:
        shares = [float(cell.attributes["style"].split(":")[1]) for cell in cells.all("td", class_="cell")]
        counts = [int(cell.text) for cell in cells.all("td", class_="cell")]
        assert [shares[i] for i in np.argsort(counts, kind="stable")] == sorted(shares)
        assert 0 <= min(shares) <= max(shares) <= 1


def decoded(image):
    content = base64.b64decode(image.attributes["src"].removeprefix("data:image/png;base64,"), validate=True)
    with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
        return np.asarray(picture)


def test_the_most_confident_mistakes(run):
    predicted = run.probabilities.argmax(1)
    wrong = [i for i in range(len(run.labels)) if predicted[i] != run.labels[i]]
    wrong.sort(key=lambda i: -run.probabilities[i].max())
    figures = run.tree.one("div", id="mistake-pictures").all("figure")
    assert len(figures) == min(len(wrong), 32) > 3
    for figure, i in zip(figures, wrong, strict=False):
        np.testing.assert_array_equal(decoded(figure.one("img")), run.images[i])
        pair = f"{run.classes[predicted[i]]} / {run.classes[run.labels[i]]}"
        assert figure.one("figcaption").text == f"{pair}{100 * run.probabilities[i].max():.1f} %"


def test_the_augmented_images(run):
    figures = run.tree.one("div", id="sample-pictures").all("figure")
    assert len(figures) == 32
    for figure, image, name in zip(figures, run.samples, run.sample_names, strict=False):
        np.testing.assert_array_equal(decoded(figure.one("img")), image)
        assert figure.text == name


def test_a_network_without_mistakes(tmp_path):
    arguments = given(epochs=2)
    arguments["probabilities"] = np.eye(10)[arguments["labels"]]
    tree = written(tmp_path, **arguments)
    assert not tree.all("div", id="mistake-pictures")
    assert "all test images were classified correctly" in tree.one("section", aria_labelledby="mistakes").text


def test_settings_that_differ_are_marked(tmp_path):
    config = Config(name="a-run", epochs=7, optimizer_betas=(0.8, 0.99), dirac_init=True).to_json()
    del config["cutout"]  # another version's settings
    config["of_old"] = 3
    table = written(tmp_path, **given(epochs=2, config=config)).one("table", id="config")
    marked = [row.rows()[0][:3] for row in table.all("tr", class_="changed")]
    assert marked == [
        ["epochs", "7 *", "24"],
        ["optimizer_betas", "0.8, 0.99 *", "0.9, 0.99"],
        ["dirac_init", "yes *", "no"],
        ["name", "a-run *", "\N{EN DASH}"],
    ]
    shown = {row[0]: row[1] for row in table.rows() if len(row) == 4}
    assert shown.keys() - {"setting"} == config.keys()
    assert shown["batch_size"] == "512"
    assert shown["of_old"] == "3"


def test_the_environment(run):
    shown = dict(run.tree.one("table", id="machine").rows())
    assert shown["git commit"] == "86f89b2d37e1"
    assert shown["torch"] == "2.15.0"
    assert shown["cpu"] == "AMD EPYC"
    assert shown["accelerator"] == "\N{EN DASH}"
    assert shown["precision"] == "bf16"


def test_hostile_names_are_text(tmp_path):
    arguments = given(epochs=2, classes=3)
    arguments["classes"] = (HOSTILE, "x", "y")
    arguments["sample_names"] = [HOSTILE] * 40
    arguments["config"]["name"] = arguments["config"]["data_dir"] = HOSTILE
    arguments["summary"]["dataset"] = arguments["summary"]["git_commit"] = HOSTILE
    arguments["summary"]["hardware"]["cpu"] = HOSTILE
    tree = written(tmp_path, **arguments)
    assert len(tree.all("script")) == 2
    assert not tree.all("b")
    assert tree.one("h1").text == HOSTILE
    assert tree.one("table", id="confusion").rows()[1][0] == HOSTILE
    assert tree.one("div", id="sample-pictures").all("figcaption")[0].text == HOSTILE
    assert dict(tree.one("table", id="machine").rows())["cpu"] == HOSTILE


def test_hostile_names_in_the_json_are_text(tmp_path):
    tree = written(tmp_path, **given(epochs=2, split=HOSTILE))
    raw = tree.one("script", id="hover").text
    assert json.loads(raw)[0]["names"][1] == HOSTILE
    assert not set("<>&'") & set(raw)
    assert len(tree.all("script")) == 2


def test_a_run_without_a_name_is_called_after_its_folder(tmp_path):
    (tmp_path / "train-1").mkdir()
    tree = written(tmp_path / "train-1", **given(epochs=2, config=Config().to_json()))
    assert tree.one("h1").text == "train-1"


PROBE = """<script>
const seen = {};
const numbers = (node, ...names) => names.map((name) => Number(node.getAttribute(name)));
const look = (plot) => {
  const tip = plot.querySelector(".tip"), box = plot.getBoundingClientRect(), inner = tip.getBoundingClientRect();
  return {
    hidden: tip.hidden,
    head: tip.querySelector("strong")?.textContent,
    rows: [...tip.querySelectorAll("div")].map((row) => [...row.children].map((part) => part.textContent)),
    circles: [...plot.querySelectorAll(".pointer circle")].map((circle) => numbers(circle, "cx", "cy")),
    inside: inner.left >= box.left - 1 && inner.right <= box.right + 1,
    spoken: plot.getAttribute("aria-valuetext"),
  };
};
for (const [name, key, type, argument] of STEPS) {
  const plot = document.getElementById(key), svg = plot.querySelector("svg"), box = svg.getBoundingClientRect();
  const x = box.left + argument * box.width / svg.viewBox.baseVal.width;
  if (type === "keydown") plot.dispatchEvent(new KeyboardEvent(type, {key: argument}));
  else if (type === "focus" || type === "blur") plot.dispatchEvent(new Event(type));
  else {
    const target = type === "pointerleave" ? plot : svg;
    target.dispatchEvent(new PointerEvent(type, {bubbles: true, clientX: x, pointerType: "mouse"}));
  }
  seen[name] = look(plot);
}
const result = document.createElement("pre");
result.id = "seen";
result.textContent = JSON.stringify(seen);
document.body.append(result);
</script>"""


def browse(path, folder, steps):
    """What a browser shows after each of some events."""
    copy = folder / "probed.html"
    copy.write_text(path.read_text(encoding="utf-8") + PROBE.replace("STEPS", json.dumps(steps)), encoding="utf-8")
    command = [CHROMIUM, *QUIET, f"--user-data-dir={folder / 'profile'}", "--dump-dom", copy.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    reader = Reader()
    reader.feed(dom[dom.index('<pre id="seen">') : dom.index("</pre>") + 6])
    return json.loads(reader.root.text)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_pointing_at_a_curve(run, tmp_path):
    places = {}
    for key in ("loss", "accuracy"):
        points = path_points(run.tree.one("div", id=key), "train")[0]
        places.update({(key, epoch): points[epoch - 1] for epoch in (1, 7, 24)})
    steps = [(f"{key} {epoch}", key, "pointermove", places[key, epoch][0] + 3) for key, epoch in places]
    steps += [
        ("left", "accuracy", "pointerleave", 0),
        ("outside", "accuracy", "pointermove", 5000),
        ("lr", "lr", "pointermove", charts.LEFT + 470 / (24 * 98 - 1) * (charts.RIGHT - charts.LEFT)),
        ("focus", "loss", "blur", ""),
        ("Home", "loss", "keydown", "Home"),
        ("ArrowRight", "loss", "keydown", "ArrowRight"),
        ("PageUp", "loss", "keydown", "PageUp"),
        ("End", "loss", "keydown", "End"),
        ("beyond", "loss", "keydown", "ArrowRight"),
        ("ArrowLeft", "loss", "keydown", "ArrowLeft"),
        ("Tab", "loss", "keydown", "Tab"),
        ("Escape", "loss", "keydown", "Escape"),
        ("touch", "speed", "pointerdown", charts.LEFT),
        ("focused", "speed", "focus", ""),
    ]
    seen = browse(run.path, tmp_path, steps)

    def rows(metric, epoch):
        record = run.history[epoch - 1]
        if metric == "loss":
            return [["train (augmented)", f"{record.train_loss:.4f}"], ["test", f"{record.eval_loss:.4f}"]]
        return [
            ["train (augmented)", f"{100 * record.train_accuracy:.2f} %"],
            ["test", f"{100 * record.eval_accuracy:.2f} %"],
        ]

    for key, epoch in places:
        tip = seen[f"{key} {epoch}"]
        assert not tip["hidden"]
        assert tip["inside"]
        assert tip["head"] == f"epoch {epoch}"
        assert tip["rows"] == rows(key, epoch)
        np.testing.assert_allclose(tip["circles"][0], places[key, epoch], atol=0.05)
        assert tip["spoken"] == f"epoch {epoch}, " + ", ".join(map(" ".join, tip["rows"]))
    assert seen["left"]["hidden"]
    assert not seen["left"]["circles"]
    assert seen["outside"]["head"] == "epoch 24"
    assert seen["lr"]["head"] == "step 470 (epoch 4.80)"
    assert seen["lr"]["rows"] == [["learning rate", f"{run.lrs[470]:.4g}"]]
    keys = {"Home": 1, "ArrowRight": 2, "PageUp": 4, "End": 24, "beyond": 24, "ArrowLeft": 23, "Tab": 23}
    for key, epoch in keys.items():
        assert seen[key]["head"] == f"epoch {epoch}"
        assert seen[key]["rows"] == rows("loss", epoch)
    assert seen["focus"]["hidden"]
    assert seen["Escape"]["hidden"]
    assert seen["touch"]["rows"] == [["images/s", f"{run.history[0].images_per_second:.1f}"]]
    assert seen["focused"]["head"] == "epoch 1"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_pointing_at_a_single_epoch_of_a_hostile_split(tmp_path):
    arguments = given(epochs=1, split=HOSTILE)
    page.write(tmp_path / "report.html", **arguments)
    tip = browse(tmp_path / "report.html", tmp_path, [("it", "loss", "pointermove", 100)])["it"]
    assert tip["head"] == "epoch 1"
    assert tip["rows"][1] == [HOSTILE, f"{arguments['history'][0].eval_loss:.4f}"]
