import json

import numpy as np
import pytest
import torch
from PIL import Image

from s10_resnet.config import PredictConfig
from s10_resnet.data import synthetic
from s10_resnet.errors import InputError
from s10_resnet.evaluation import predict as prediction
from s10_resnet.evaluation.gradcam import grad_cam
from s10_resnet.evaluation.predict import predict, predict_images
from s10_resnet.evaluation.tta import TTAModel
from s10_resnet.models.pretrained import load_model
from s10_resnet.reporting import plots

SYNTHETIC = (
    "warning: these weights were trained on the synthetic data set of drawn shapes: they cannot classify photographs\n"
)


@pytest.fixture(scope="module")
def model(weights):
    return load_model(weights, device="cpu")


@pytest.fixture(scope="module")
def images():
    return synthetic.generate(6, 3)[0]


@pytest.fixture
def folder(tmp_path, images):
    path = tmp_path / "images"
    path.mkdir()
    for index, image in enumerate(images[:3]):
        Image.fromarray(image).save(path / f"{index}.png")
    return path


def run(checkpoint, *paths, **settings):
    return predict_images(PredictConfig(images=paths, checkpoint=checkpoint, device="cpu", **settings))


@pytest.mark.parametrize("tta", ["none", "flip", "flip_shift"])
def test_probabilities(model, images, tta):
    with torch.inference_mode():
        expected = TTAModel(model.network, tta)(torch.from_numpy(images)).softmax(1).numpy()
    probabilities = predict(model, images, tta)
    assert (probabilities.shape, probabilities.dtype) == ((6, 10), np.float32)
    assert np.allclose(probabilities, expected, atol=1e-6)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)


def test_images_of_any_kind(model, images, folder):
    expected = predict(model, images)
    path, image = folder / "0.png", Image.fromarray(images[1])
    for one, index in ((path, 0), (str(path), 0), (image, 1), (images[2], 2), (images[2:3], 2)):
        assert np.allclose(predict(model, one), expected[index, None], atol=1e-6)
        assert np.allclose(predict(model, [one]), expected[index, None], atol=1e-6)
    several = [path, images[3:5], image, images[2], str(folder / "2.png")]
    assert np.allclose(predict(model, several), expected[[0, 3, 4, 1, 2, 2]], atol=1e-6)
    assert np.allclose(predict(model, tuple(images)), expected, atol=1e-6)
    backwards = images[::-1]
    backwards.flags.writeable = False
    assert np.allclose(predict(model, backwards), expected[::-1], atol=1e-6)
    with Image.open(path) as opened:
        assert np.allclose(predict(model, opened), expected[:1], atol=1e-6)


ARRAYS = r"^images: must be paths, PIL images, or arrays of uint8 \[32, 32, 3\] or \[N, 32, 32, 3\], not "


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((2, 32, 32, 3)), ARRAYS + r"float64 \[2, 32, 32, 3\]$"),
        (np.zeros((2, 3, 32, 32), np.uint8), ARRAYS + r"uint8 \[2, 3, 32, 32\]$"),
        ([np.zeros((1, 1, 32, 32, 3), np.uint8)], ARRAYS + r"uint8 \[1, 1, 32, 32, 3\]$"),
        (torch.zeros(32, 32, 3, dtype=torch.uint8), ARRAYS + "Tensor$"),
        (None, ARRAYS + "NoneType$"),
        ([], "^images: must hold at least one image$"),
        (np.zeros((0, 32, 32, 3), np.uint8), "^images: must hold at least one image$"),
        ("missing.png", "^missing.png: cannot be read as an image .it must be a file"),
        ("", "^.: cannot be read as an image .it must be a file"),
        ("a\0b", "^a.x00b: cannot be read"),
        (Image.new("1", (10_000, 10_000)), "^images: a PIL image cannot be read .it must have at most 50 megapixels.$"),
    ],
)
def test_what_is_no_image(model, wrong, message):
    with pytest.raises(InputError, match=message):
        predict(model, wrong)


@pytest.mark.parametrize("tta", ["ten", "six", None, []])
def test_an_unknown_kind_of_augmentation(model, images, tta):
    with pytest.raises(InputError, match=r"^tta .*: must be one of none, flip, flip_shift$"):
        predict(model, images, tta)


def test_a_model_is_one_of_load_model(images):
    with pytest.raises(InputError, match=r"^model: must be a model of load_model, not str$"):
        predict("outputs/run", images)


def test_a_table(weights, model, images, folder, capsys):
    probabilities = run(weights, folder)
    assert np.allclose(probabilities, predict(model, images[:3]), atol=1e-6)
    out, err = capsys.readouterr()
    assert err == SYNTHETIC
    assert len(out.splitlines()) == 3
    for line, name, row in zip(out.splitlines(), ("0.png", "1.png", "2.png"), probabilities, strict=True):
        path, *cells = line.split()
        assert path == str(folder / name)
        order = sorted(range(10), key=lambda label: -row[label])[:3]
        assert cells == [word for label in order for word in (model.classes[label], f"{row[label]:.2%}")]


@pytest.mark.parametrize("limit", [2, 3])
def test_a_plot_of_the_images_and_what_speaks_for_their_class(
    weights, model, images, folder, tmp_path, monkeypatch, capsys, limit
):
    monkeypatch.setattr(prediction, "MAX_PLOTTED", limit)
    drawn, draw = [], plots.plot_predictions
    monkeypatch.setattr(
        plots, "plot_predictions", lambda *given, title: drawn.append((*given, title)) or draw(*given, title=title)
    )
    path = tmp_path / "plot.png"
    probabilities = run(weights, folder, plot=path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > 900
    ((shown, maps, names, tops, title),) = drawn
    assert [image.shape for image in shown] == [(256, 256, 3)] * limit
    labels = probabilities.argmax(1)[:limit]
    expected = grad_cam(model.network, torch.from_numpy(images[:limit]), torch.from_numpy(labels))
    assert np.allclose(maps, expected.numpy(), atol=1e-5)
    assert names == ["0.png", "1.png", "2.png"][:limit]
    assert [top[0][0] for top in tops] == [model.classes[label] for label in labels]
    assert title == ("The first 2 of 3 images" if limit == 2 else "")
    assert capsys.readouterr().out.endswith(f"\nplot: {path}\n")


@pytest.mark.parametrize("name", ["plot.jpg", "missing/plot.png", "", "folder.png"])
def test_a_plot_that_cannot_be_written_is_refused_first(folder, tmp_path, name):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=r"^--plot .*: must be a name ending in \.png, in a folder that exists$"):
        run(tmp_path / "none.pt", folder, plot=tmp_path / name)


@pytest.mark.parametrize("as_json", [False, True])
def test_what_can_be_read_is_printed_before_the_rest_is_an_error(
    weights, model, images, folder, tmp_path, capsys, as_json
):
    bad = folder / "1b.png"
    bad.write_text("text")
    plot = tmp_path / "plot.png"
    row = predict(model, images)[2]
    with pytest.raises(InputError, match=r"^IMAGE: 1 of 4 images cannot be read$"):
        run(weights, folder, json_=as_json, plot=plot)
    out, err = capsys.readouterr()
    assert f"warning: {bad}: cannot be read as an image (it is in no known format)\n" in err
    assert plot.exists()
    if as_json:
        records = json.loads(out)
        assert ["error" in record for record in records] == [False, False, True, False]
        assert "no known format" in records[2]["error"]
        assert [record["image"] for record in records] == [str(folder / f"{i}.png") for i in ("0", "1", "1b", "2")]
        values = {one["class"]: one["probability"] for one in records[3]["predictions"]}
        assert list(values.values()) == pytest.approx(sorted(row, reverse=True)[:3])
        assert all(row[synthetic.CLASSES.index(name)] == pytest.approx(value) for name, value in values.items())
    else:
        assert [line.split()[0] for line in out.splitlines()[:3]] == [str(folder / f"{i}.png") for i in range(3)]


def test_nothing_that_can_be_read(weights, folder):
    bad, worse = folder / "a.png", folder / "b.png"
    bad.write_text("text")
    worse.write_text("text")
    with pytest.raises(InputError) as caught:
        run(weights, bad, worse)
    message = f"{bad}: cannot be read as an image (it is in no known format)"
    assert str(caught.value) == f"IMAGE: none of the images can be read, the first: {message}"


def test_names_from_outside(weights, model, images, tmp_path, capsys):
    """Neither the terminal nor matplotlib takes them for more than names."""
    name = "$\\frac{$ evil\x1b[2J\n.png"
    Image.fromarray(images[0]).save(tmp_path / name)
    run(weights, tmp_path / name, plot=tmp_path / "plot.png")
    out = capsys.readouterr().out
    assert r"$\frac{$ evil\x1b[2J\n.png" in out
    assert out.count("\n") == 2
    run(weights, tmp_path / name, json_=True)
    assert json.loads(capsys.readouterr().out)[0]["image"] == str(tmp_path / name)
