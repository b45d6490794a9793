import base64
import io
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from s10_resnet.config import TrainConfig
from s10_resnet.data.dataset import Split
from s10_resnet.reporting import html_report
from s10_resnet.reporting.figures import RunData

HOSTILE = "</script><script>alert('1')</script>&<b>"
VOID = {"meta", "img", "br"}
DASH = "\N{EN DASH}"


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
        SimpleNamespace(
            epoch=epoch + 1,
            train_loss=2 / (epoch + 1) ** 0.5 + 0.1 * rng.random(),
            train_accuracy=1 - 0.6 / (epoch + 1) ** 0.5 - 0.01 * rng.random(),
            eval_loss=2.2 / (epoch + 1) ** 0.5 + 0.1 * rng.random(),
            eval_accuracy=1 - 0.7 / (epoch + 1) ** 0.5 - 0.02 * rng.random(),
            lr=1e-3,
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
            "final_eval_accuracy": history[-1].eval_accuracy,
            "best_train_accuracy": max(record.train_accuracy for record in history),
            "best_eval_accuracy": best.eval_accuracy,
            "best_epoch": best.epoch,
            "train_images": 50_000,
            "eval_split": split,
            "eval_images": images,
            "train_seconds": 4028.75,
            "eval_seconds": 75.0,
            "images_per_second": 297.86,
            "workers": 2,
            "device": "cpu",
            "precision": "bf16",
            "world_size": 1,
            "versions": {"python": "3.11.7", "torch": "2.15.0"},
            "git_commit": "86f89b2d37e1",
            "hardware": {"accelerator": None, "cpu": "AMD EPYC", "threads": 2, "system": "Linux x86_64"},
        },
        "config": TrainConfig(name="a-run").to_json(),
        "history": history,
        "lrs": list(np.interp(np.arange(epochs * 98), [0, 20 * epochs, 98 * epochs], [0.0002, 0.005, 0.0])),
        "steps_per_epoch": 98,
        "eval": Split(
            rng.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8),
            labels,
            tuple(f"class-{index}" for index in range(classes)),
        ),
        "probabilities": probabilities / probabilities.sum(1, keepdims=True),
        "samples": rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8),
        "sample_labels": [f"sample-{index}" for index in range(40)],
    }
    return {**arguments, **changes}


def written(folder, **arguments):
    html_report.write_report(folder / "report.html", RunData(**arguments))
    return parse(folder / "report.html")


def texts(svg):
    return [node.text for node in svg.all("text")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A page of 24 epochs, and what it was made of."""
    arguments = given()
    folder = tmp_path_factory.mktemp("run")
    tree = written(folder, **arguments)
    return SimpleNamespace(path=folder / "report.html", tree=tree, **arguments, **arguments["eval"]._asdict())


def test_the_page_is_sound_and_alone(run):
    text = run.path.read_text(encoding="utf-8")
    assert len(text) < 500_000
    for forbidden in ("http:", "https:", "//cdn", "@import", "<script", "<!DOCTYPE svg"):
        assert forbidden not in text
    assert not run.tree.all("link")
    for node in run.tree.walk():
        for name in ("src", "srcset", "data", "action"):
            assert node.attributes.get(name, "data:image/png;base64,").startswith("data:image/png;base64,")
        assert node.attributes.get("href", "#").startswith("#")
        assert all(url.startswith("url(#") for url in re.findall(r"url\(.", str(node.attributes)))
        assert not [name for name in node.attributes if name.startswith("on")]
    assert "url(" not in "".join(node.text for node in run.tree.all("style"))

    policy = next(node.attributes["content"] for node in run.tree.all("meta") if "http-equiv" in node.attributes)
    rules = {name: sources for name, *sources in map(str.split, policy.split(";"))}
    assert rules["default-src"] == ["'none'"]
    assert rules["img-src"] == ["data:"]
    assert "script-src" not in rules


def test_what_a_screen_reader_needs(run):
    assert run.tree.one("html").attributes["lang"] == "en"
    assert run.tree.one("title").text == f"{run.tree.one('h1').text}: ResNet-9 on CIFAR-10"
    assert all(image.attributes["alt"] for image in run.tree.all("img"))
    assert all(svg.attributes["role"] == "img" and svg.attributes["aria-label"] for svg in run.tree.all("svg"))
    ids = [node.attributes["id"] for node in run.tree.walk() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    for node in run.tree.walk():
        assert node.attributes.get("aria-labelledby", ids[0]) in ids


def test_the_headline_is_the_summary(run):
    shown = {box.one("dt").text: [dd.text for dd in box.all("dd")] for box in run.tree.one("dl").all("div")}
    summary = run.summary
    final, best = summary["final_eval_accuracy"], summary["best_eval_accuracy"]
    assert final != best
    assert shown["final test accuracy"] == [f"{100 * final:.2f} %", "epoch 24"]
    assert shown["best test accuracy"] == [f"{100 * best:.2f} %", f"epoch {summary['best_epoch']}"]
    assert shown["training time"] == ["1 h 07 min", "and 1 min 15 s of evaluation"]
    assert shown["speed"] == ["298", "training images/s"]
    assert shown["parameters"][0] == "6,573,120"
    assert shown["epochs"] == ["24", "of 50,000 images"]
    assert shown["peak learning rate"] == ["0.005", "seed 5"]
    assert not run.tree.all("p", class_="note")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "synthetic"}, ["Synthetic data."]),
        ({"status": "interrupted"}, ["Interrupted.", "2 of 24 epochs"]),
    ],
)
def test_what_must_not_be_missed(tmp_path, changes, words):
    arguments = given(epochs=2)
    arguments["summary"].update(changes)
    tree = written(tmp_path, **arguments)
    assert all(word in tree.one("p", class_="note").text for word in words)
    targets = [text for text in texts(tree.one("svg", id="curves")) if text.startswith("target")]
    assert bool(targets) == ("dataset" not in changes)


def test_held_out_images_are_not_called_test_images(tmp_path):
    tree = written(tmp_path, **given(epochs=2, split="val"))
    assert "final val accuracy" in [dt.text for dt in tree.all("dt")]
    results = tree.all("section")[:5]  # the settings speak of the range test
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


def test_figures_are_those_of_matplotlib(run):
    final, best = run.history[-1], max(run.history, key=lambda metrics: metrics.eval_accuracy)
    shown = texts(run.tree.one("svg", id="curves"))
    legend = ["train (augmented)", "test", "target: 90 %"]
    legend += [
        f"{name}: {100 * m.eval_accuracy:.2f} % (epoch {m.epoch})" for name, m in (("best", best), ("final", final))
    ]
    assert set(legend) < set(shown)
    assert {"loss", "accuracy, %", "epoch"} < set(shown)
    assert "peak 0.005 at step 480 (epoch 4.9)" in texts(run.tree.one("svg", id="lr-schedule"))


def test_figures_take_their_colors_from_the_page_and_keep_their_ids_apart(run):
    style = run.tree.one("style").text
    for svg in run.tree.all("svg"):
        ids = [node.attributes["id"] for node in svg.walk() if "id" in node.attributes]
        assert all(id.startswith(svg.attributes["id"]) for id in ids)
        for node in svg.walk():
            for reference in re.findall(
                r"#([\w-]+)\)?$", " ".join(filter(None, map(node.attributes.get, ("href", "clip-path"))))
            ):
                assert reference in ids
            inline = node.attributes.get("style", "")
            assert all(
                style.count(f"{variable}:") == 2 for variable in re.findall(r"var\((.+?)\)", inline)
            )  # light, dark
            colors = set(re.findall(r"#[0-9a-f]{6}", inline))
            assert colors <= ({"#00609a", "#ffffff"} if svg.attributes["id"] == "confusion" else set())
        lines = [node for node in svg.all("path") if "fill: none" in node.attributes.get("style", "")]
        assert any("var(--" in node.attributes["style"] or "currentColor" in node.attributes["style"] for node in lines)


def test_a_value_that_is_not_finite_leaves_a_gap(tmp_path):
    arguments = given(epochs=6)
    for name in ("train_loss", "eval_loss", "eval_accuracy"):
        setattr(arguments["history"][5], name, float("nan"))
    tree = written(tmp_path, **arguments)
    assert tree.one("table", id="epochs").rows()[6][4] == DASH
    assert f"final: {DASH} (epoch 6)" in texts(tree.one("svg", id="curves"))


def test_classes_are_counted(run):
    pairs = list(zip(run.labels, run.probabilities.argmax(1), strict=True))
    matrix = [str(sum(pair == (true, other) for pair in pairs)) for true in range(10) for other in range(10)]
    shown = texts(run.tree.one("svg", id="confusion"))
    assert [text for text in shown if text in run.classes] == [*run.classes, *run.classes]
    assert shown[shown.index("true class") + 1 :][:100] == matrix


def decoded(image):
    content = base64.b64decode(image.attributes["src"].removeprefix("data:image/png;base64,"), validate=True)
    with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
        return np.asarray(picture)


def test_the_most_confident_errors(run):
    predicted = run.probabilities.argmax(1)
    wrong = [i for i in range(len(run.labels)) if predicted[i] != run.labels[i]]
    wrong.sort(key=lambda i: -run.probabilities[i].max())
    figures = run.tree.one("div", id="error-pictures").all("figure")
    assert len(figures) == min(len(wrong), 32) > 3
    for figure, i in zip(figures, wrong, strict=False):
        np.testing.assert_array_equal(decoded(figure.one("img")), run.images[i])
        pair = f"{run.classes[predicted[i]]} / {run.classes[run.labels[i]]}"
        assert figure.one("figcaption").text == f"{pair}{100 * run.probabilities[i].max():.1f} %"


def test_the_augmented_images(run):
    figures = run.tree.one("div", id="sample-pictures").all("figure")
    assert len(figures) == 32
    for figure, image, name in zip(figures, run.samples, run.sample_labels, strict=False):
        np.testing.assert_array_equal(decoded(figure.one("img")), image)
        assert figure.text == name


def test_a_network_without_errors(tmp_path):
    arguments = given(epochs=2)
    arguments["probabilities"] = np.eye(10)[arguments["eval"].labels]
    tree = written(tmp_path, **arguments)
    assert not tree.all("div", id="error-pictures")
    assert "all test images are classified correctly" in tree.one("section", aria_labelledby="errors").text


def test_settings_that_differ_are_marked(tmp_path):
    config = TrainConfig(name="a-run", epochs=7, betas=(0.8, 0.99), dirac_init=False).to_json()
    table = written(tmp_path, **given(epochs=2, config=config)).one("table", id="config")
    marked = {row.one("code").text: [cell.text for cell in row.all("td")] for row in table.all("tr", class_="changed")}
    assert marked == {
        "epochs": ["7 *", "24"],
        "betas": ["0.8, 0.99 *", "0.9, 0.99"],
        "dirac_init": ["no *", "yes"],
        "name": ["a-run *", DASH],
    }
    groups = {
        body.one("th", scope="rowgroup").text: [code.text for code in body.all("code")] for body in table.all("tbody")
    }
    assert {name for names in groups.values() for name in names} == config.keys()
    assert "label_smoothing" in groups["training"]


def test_the_environment(run):
    shown = dict(run.tree.one("table", id="machine").rows())
    assert shown["git commit"] == "86f89b2d37e1"
    assert shown["torch"] == "2.15.0"
    assert shown["cpu"] == "AMD EPYC"
    assert (shown["accelerator"], shown["world size"]) == (DASH, "1")
    assert shown["precision"] == "bf16"


def test_hostile_names_are_text(tmp_path):
    arguments = given(epochs=2, classes=3)
    arguments["eval"] = arguments["eval"]._replace(classes=(HOSTILE, "x", "y"))
    arguments["sample_labels"] = [HOSTILE] * 40
    arguments["config"]["name"] = arguments["config"]["data_dir"] = HOSTILE
    arguments["summary"]["git_commit"] = HOSTILE
    arguments["summary"]["hardware"]["cpu"] = HOSTILE
    folder = tmp_path / HOSTILE.replace("/", "")
    folder.mkdir()
    tree = written(folder, **arguments)
    assert not tree.all("script")
    assert not tree.all("b")
    assert tree.one("h1").text == folder.name
    assert texts(tree.one("svg", id="confusion")).count(HOSTILE) == 2
    assert tree.one("div", id="sample-pictures").all("figcaption")[0].text == HOSTILE
    assert dict(tree.one("table", id="machine").rows())["cpu"] == HOSTILE
