import json

import numpy as np
import pytest
import torch
from PIL import Image

from s10_resnet.data import synthetic
from s10_resnet.errors import InputError
from s10_resnet.evaluation import gradcam
from s10_resnet.evaluation import predict as prediction
from s10_resnet.evaluation.predict import predict, show
from s10_resnet.evaluation.tta import Averaged
from s10_resnet.models.pretrained import load_model
from s10_resnet.options import Prediction
from s10_resnet.reporting import plots


@pytest.fixture
def trained(weights):
    return load_model(weights, device="cpu")


@pytest.fixture
def images():
    return synthetic.draw(20, 3)[0]


@pytest.fixture
def folder(tmp_path, images):
    path = tmp_path / "pictures"
    path.mkdir()
    for index, image in enumerate(images[:3]):
        Image.fromarray(image).save(path / f"{index}.png")
    return path


@pytest.mark.parametrize("tta", ["none", "flip", "six"])
def test_probabilities(trained, images, tta):
    with torch.inference_mode():
        expected = Averaged(trained.network, tta)(torch.from_numpy(images)).softmax(1).numpy()
    given = predict(trained, images, tta)
    assert (given.shape, given.dtype) == ((20, 10), np.float32)
    assert np.allclose(given, expected, atol=1e-6)
    assert np.allclose(given.sum(1), 1, atol=1e-5)


def test_files_are_images_too(trained, images, folder):
    files = [folder / "0.png", str(folder / "2.png")]
    assert np.allclose(predict(trained, files), predict(trained, images[[0, 2]]), atol=1e-6)


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 32, 32, 3)), np.zeros((32, 32, 3), np.uint8), np.zeros((2, 3, 32, 32), np.uint8)]
)
def test_arrays_that_are_no_images(trained, wrong):
    with pytest.raises(ValueError, match=r"^images must be uint8 \[N, 32, 32, 3\], not "):
        predict(trained, wrong)


def test_a_table(weights, trained, images, folder, capsys):
    shown = show(Prediction(images=(folder,), checkpoint=weights, device="cpu"))
    assert np.allclose(shown, predict(trained, images[:3]), atol=1e-6)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for line, name, row in zip(lines, ("0.png", "1.png", "2.png"), shown, strict=True):
        path, *cells = line.split()
        assert path == str(folder / name)
        order = sorted(range(10), key=lambda label: -row[label])[:3]
        assert cells == [word for label in order for word in (trained.classes[label], f"{row[label]:.2%}")]


def test_json(weights, folder, capsys):
    shown = show(Prediction(images=(folder,), checkpoint=weights, device="cpu", json=True))
    records = json.loads(capsys.readouterr().out)
    assert [record["image"] for record in records] == [str(folder / f"{name}.png") for name in ("0", "1", "2")]
    for record, row in zip(records, shown, strict=True):
        pairs = [(one["class"], one["probability"]) for one in record["predictions"]]
        assert [share for _, share in pairs] == sorted(map(float, row), reverse=True)[:3]
        assert all(row[synthetic.CLASSES.index(name)] == share for name, share in pairs)


def test_a_plot_shows_the_pictures_and_what_speaks_for_their_class(
    weights, trained, images, folder, tmp_path, monkeypatch
):
    drawn = []
    draw = plots.predictions
    monkeypatch.setattr(
        plots, "predictions", lambda *given, **more: drawn.append((*given, more)) or draw(*given, **more)
    )
    path = tmp_path / "seen.png"
    shown = show(Prediction(images=(folder,), checkpoint=weights, device="cpu", plot=path))
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > 900
    ((pictures, maps, names, tops, more),) = drawn
    assert [picture.shape for picture in pictures] == [(256, 256, 3)] * 3
    expected = gradcam.heat_maps(trained.network, torch.from_numpy(images[:3]), torch.from_numpy(shown.argmax(1)))
    assert np.allclose(maps, expected.numpy(), atol=1e-5)
    assert names == ["0.png", "1.png", "2.png"]
    assert [top[0][0] for top in tops] == [trained.classes[label] for label in shown.argmax(1)]
    assert more["title"] == ""


def test_a_plot_has_an_end(weights, trained, images, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "PLOTTED", 2)
    drawn = []
    monkeypatch.setattr(plots, "predictions", lambda *given, title: drawn.append((*given, title)) or plots.Figure())
    shown = show(Prediction(images=(folder,), checkpoint=weights, device="cpu", plot=tmp_path / "seen.png"))
    ((pictures, maps, names, _, title),) = drawn
    assert (len(pictures), names, title) == (2, ["0.png", "1.png"], "The first 2 of 3 pictures")
    expected = gradcam.heat_maps(trained.network, torch.from_numpy(images[:2]), torch.from_numpy(shown[:2].argmax(1)))
    assert np.allclose(maps, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["seen.jpg", "missing/seen.png", "", "folder.png"])
def test_a_plot_that_cannot_be_written_is_refused_first(folder, tmp_path, name):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=r"^--plot .*: must be a name ending in \.png, in a folder that exists$"):
        show(Prediction(images=(folder,), checkpoint=tmp_path / "none.pt", plot=tmp_path / name))


@pytest.mark.parametrize("as_json", [False, True])
def test_what_can_be_read_is_shown_before_the_rest_is_an_error(weights, folder, tmp_path, capsys, as_json):
    bad = folder / "1b.png"
    bad.write_text("text")
    plot = tmp_path / "seen.png"
    with pytest.raises(InputError, match=r"^IMAGE: 1 of 4 cannot be read$"):
        show(Prediction(images=(folder,), checkpoint=weights, device="cpu", json=as_json, plot=plot))
    out, err = capsys.readouterr()
    assert f"{bad}: must be a picture, one of PNG, JPEG, WEBP, GIF, BMP\n" in err
    assert plot.exists()
    if as_json:
        records = json.loads(out)
        assert ["error" in record for record in records] == [False, False, True, False]
        assert "must be a picture" in records[2]["error"]
    else:
        assert [line.split()[0] for line in out.splitlines()] == [str(folder / f"{i}.png") for i in range(3)]


def test_nothing_that_can_be_read(weights, folder, capsys):
    bad = folder / "1b.png"
    bad.write_text("text")
    with pytest.raises(InputError) as caught:
        show(Prediction(images=(bad,), checkpoint=weights, device="cpu"))
    assert str(caught.value) == f"IMAGE {bad}: must be a picture, one of PNG, JPEG, WEBP, GIF, BMP"
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match=r"^IMAGE .*1b\.png: must be a picture that can be read; none of 2 can$"):
        show(Prediction(images=(bad, bad), checkpoint=weights, device="cpu"))
    assert capsys.readouterr().err.count("1b.png: must be a picture, one of") == 2
