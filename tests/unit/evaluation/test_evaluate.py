import json

import pytest
import torch
from PIL import Image

from s10_resnet.config import EvaluateConfig
from s10_resnet.data import dataset, synthetic
from s10_resnet.data.dataset import Split
from s10_resnet.errors import InputError
from s10_resnet.evaluation import evaluate, metrics
from s10_resnet.evaluation.evaluate import evaluate_checkpoint
from s10_resnet.evaluation.tta import TTAModel
from s10_resnet.models import resnet
from s10_resnet.models.pretrained import load_model
from s10_resnet.reporting import plots
from s10_resnet.utils import serialization
from tests.conftest import weights_content
from tests.runs import failing, small_network

TRAIN, TEST = (Split(*synthetic.generate(size, seed), synthetic.CLASSES) for size, seed in ((80, 1), (60, 2)))


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(dataset, "load_synthetic", lambda: (TRAIN, TEST))
    monkeypatch.setattr(resnet, "build_model", small_network)


@pytest.fixture
def best(tmp_path):
    """The weights of a small network that has seen some images, in a folder of their own."""
    network = small_network((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), num_classes=10)
    network(torch.from_numpy(TRAIN.images))
    path = tmp_path / "run" / "best.pt"
    path.parent.mkdir()
    serialization.save(path, weights_content(network))
    return path


@pytest.fixture
def folder(tmp_path):
    """The test images as files, in a folder per class."""
    for index, (image, label) in enumerate(zip(TEST.images, TEST.labels, strict=True)):
        path = tmp_path / "images" / TEST.classes[label] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "images"


def logits_of(path, images, tta="none"):
    with torch.inference_mode():
        return TTAModel(load_model(path, device="cpu"), tta)(torch.from_numpy(images))


def run(path, **settings):
    return evaluate_checkpoint(EvaluateConfig(**{"checkpoint": path, "device": "cpu", "precision": "fp32", **settings}))


def results(checkpoint, evaluated):
    return [*checkpoint.parent.glob(f"evaluation-{checkpoint.stem}-{evaluated}.json")]


def test_on_the_test_images(best, capsys):
    content = run(best)
    expected = metrics.compute_metrics(logits_of(best, TEST.images), torch.from_numpy(TEST.labels), TEST.classes)
    for key, value in expected.items():
        assert content[key] == (pytest.approx(value) if isinstance(value, float) else value)
    keys = ("checkpoint", "epoch", "dataset", "split", "tta", "errors", "device", "precision")
    assert [content[key] for key in keys] == [str(best), 3, "synthetic", "test", "none", [], "cpu", "fp32"]
    assert content["accuracy_without_tta"] == content["accuracy"]
    written = best.with_name("evaluation-best-test.json")
    assert json.loads(written.read_text()) == content
    assert written.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert len(list(best.parent.iterdir())) == 3
    out, err = capsys.readouterr()
    assert err == ""
    assert "test images (n = 60)" in out
    assert f"accuracy {content['accuracy']:.2%}, loss {content['loss']:.4f}, expected calibration error" in out
    for name, row in content["per_class"].items():
        assert f"{name} " in out
        assert f"{row['accuracy']:.2%}  of 6\n" in out


@pytest.mark.parametrize("tta", ["flip", "flip_shift"])
def test_with_augmentation_and_without_beside_it(best, capsys, tta):
    content = run(best, tta=tta)
    labels = torch.from_numpy(TEST.labels)
    expected = metrics.compute_metrics(logits_of(best, TEST.images, tta), labels, TEST.classes)["loss"]
    assert content["loss"] == pytest.approx(expected)
    correct = logits_of(best, TEST.images).argmax(1) == labels
    assert content["accuracy_without_tta"] == pytest.approx(correct.double().mean().item())
    assert f"(without TTA {content['accuracy_without_tta']:.2%})" in capsys.readouterr().out
    assert best.with_name(f"evaluation-best-test-{tta}.json").exists()


def test_on_the_images_that_the_run_held_out(best):
    with pytest.raises(InputError, match=r"^--split val: must be test, since this run held no images out$"):
        run(best, split="val")
    content = serialization.load(best)
    content["config"]["val_size"] = 30
    serialization.save(best, content)
    held = dataset.train_val_split(TRAIN, 30)[1]
    measured = run(best, split="val")
    expected = metrics.compute_metrics(logits_of(best, held.images), torch.from_numpy(held.labels), held.classes)
    assert (measured["loss"], measured["images"]) == (pytest.approx(expected["loss"]), 30)
    assert best.with_name("evaluation-best-val.json").exists()


def test_on_image_files_in_a_folder_per_class(best, folder, capsys):
    (folder / "ring" / "broken.png").write_text("text")
    content = run(best, images=folder)
    on_arrays = run(best)
    assert content["accuracy"] == on_arrays["accuracy"]
    assert content["loss"] == pytest.approx(on_arrays["loss"])
    assert content["confusion_matrix"] == on_arrays["confusion_matrix"]
    assert (content["dataset"], content["split"]) == (str(folder), None)
    (line,) = content["errors"]
    assert line == f"{folder / 'ring' / 'broken.png'}: cannot be read as an image (it is in no known format)"
    out, err = capsys.readouterr()
    assert err == f"warning: {line}\n"
    assert "labeled images (n = 60)" in out
    assert "images that cannot be read, and are not counted: 1\n" in out
    assert json.loads(results(best, "images-images-*")[0].read_text()) == content


def test_no_result_is_overwritten_by_that_of_other_images(best, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plots, "save", lambda figure, path: None)
    monkeypatch.setattr(evaluate, "collect_environment", lambda device: {})
    folders = [tmp_path / "a" / "pets", tmp_path / "b" / "pets", tmp_path / "b" / "$ evil\x1b[2J"]
    for number, path in enumerate(folders, 1):
        for index in range(number):
            (path / "ring").mkdir(parents=True, exist_ok=True)
            Image.fromarray(TEST.images[index]).save(path / "ring" / f"{index}.png")
        for _ in range(2):  # again: it has its file
            assert run(best, images=path)["images"] == number
        assert len(results(best, "*")) == number
    assert sorted(json.loads(path.read_text())["dataset"] for path in results(best, "*")) == sorted(map(str, folders))
    assert len(results(best, "images-pets-*")) == 2
    assert len(results(best, "images-__evil__2J-*")) == 1
    assert "\x1b" not in capsys.readouterr().out


def test_images_none_of_which_can_be_read(best, tmp_path):
    (tmp_path / "images" / "ring").mkdir(parents=True)
    (tmp_path / "images" / "ring" / "a.png").write_text("text")
    with pytest.raises(
        InputError, match=r"^--images .*: none of the images can be read, the first: .*a\.png: cannot be read"
    ):
        run(best, images=tmp_path / "images")
    assert not list(best.parent.glob("evaluation*"))


def test_a_data_set_of_other_classes(tmp_path):
    content = weights_content(small_network((0.0,) * 3, (1.0,) * 3, num_classes=3))
    path = tmp_path / "best.pt"
    serialization.save(path, {**content, "classes": ["a", "b", "c"]})
    with pytest.raises(InputError, match=r"must have the classes of synthetic, and has others$"):
        run(path)


def test_a_plot_that_cannot_be_drawn_is_a_warning(best, monkeypatch, capsys):
    monkeypatch.setattr(plots, "save", failing(FileNotFoundError(2, "No such file", "DejaVuSans.ttf")))
    run(best)
    assert (best.parent / "evaluation-best-test.json").exists()
    assert capsys.readouterr().err.startswith("warning: a plot could not be drawn (FileNotFoundError: ")
