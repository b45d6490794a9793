import json

import numpy as np
import pytest
import torch
from PIL import Image

from s10_resnet.data import dataset as data
from s10_resnet.data import synthetic
from s10_resnet.data.dataset import Split
from s10_resnet.errors import InputError
from s10_resnet.evaluation import metrics
from s10_resnet.evaluation.evaluate import evaluate
from s10_resnet.evaluation.tta import Averaged
from s10_resnet.models import resnet as model
from s10_resnet.models.pretrained import load_model
from s10_resnet.options import Evaluation
from s10_resnet.utils import serialization as checkpoint
from tests.conftest import weights_content

TRAIN, TEST = (Split(*synthetic.draw(size, seed), synthetic.CLASSES) for size, seed in ((80, 1), (60, 2)))


@pytest.fixture(autouse=True)
def _small_data(monkeypatch):
    monkeypatch.setattr(data, "load_synthetic", lambda: (TRAIN, TEST))


@pytest.fixture
def best(weights, tmp_path):
    """A copy of the weights in a folder of their own."""
    path = tmp_path / "run" / "best.pt"
    path.parent.mkdir()
    path.write_bytes(weights.read_bytes())
    return path


def logits_of(path, images, tta="none"):
    with torch.inference_mode():
        return Averaged(load_model(path, device="cpu").network, tta)(torch.from_numpy(images))


def run(path, **options):
    return evaluate(Evaluation(checkpoint=path, device="cpu", precision="fp32", **options))


def test_on_the_test_images(best, capsys):
    content = run(best)
    expected = metrics.measure(logits_of(best, TEST.images), torch.from_numpy(TEST.labels), TEST.classes)
    for key, value in expected.items():
        assert content[key] == (pytest.approx(value) if isinstance(value, float) else value)
    about = ("checkpoint", "epoch", "dataset", "split", "tta", "unreadable", "device", "precision")
    assert [content[key] for key in about] == [str(best), 3, "synthetic", "test", "none", [], "cpu", "fp32"]
    assert content["plain_accuracy"] == content["accuracy"]
    written = best.with_name("evaluation-best-test.json")
    assert json.loads(written.read_text()) == content
    assert written.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert len(list(best.parent.iterdir())) == 3
    out, err = capsys.readouterr()
    assert err == ""
    assert f"accuracy {content['accuracy']:.2%}, loss {content['loss']:.4f}, expected calibration error" in out
    for name, row in content["per_class"].items():
        assert f"{name} " in out
        assert f"{row['accuracy']:.2%}  of 6\n" in out


@pytest.mark.parametrize("tta", ["flip", "six"])
def test_with_augmentation_and_without_beside_it(best, capsys, tta):
    content = run(best, tta=tta)
    labels = torch.from_numpy(TEST.labels)
    assert content["loss"] == pytest.approx(
        metrics.measure(logits_of(best, TEST.images, tta), labels, TEST.classes)["loss"]
    )
    assert content["loss"] != run(best)["loss"]
    plain = logits_of(best, TEST.images).argmax(1) == labels
    assert content["plain_accuracy"] == pytest.approx(plain.double().mean().item())
    assert f"(without augmentation {content['plain_accuracy']:.2%})" in capsys.readouterr().out
    assert best.with_name(f"evaluation-best-test-{tta}.json").exists()


def test_on_the_images_that_the_run_held_out(best):
    with pytest.raises(InputError, match=r"^--split val: must be test, since this run held no images out$"):
        run(best, split="val")
    content = checkpoint.load(best)
    content["config"]["val_size"] = 30
    checkpoint.save(best, content)
    held = data.hold_out(TRAIN, 30)[1]
    measured = run(best, split="val")
    expected = metrics.measure(logits_of(best, held.images), torch.from_numpy(held.labels), held.classes)
    assert (measured["loss"], measured["images"]) == (pytest.approx(expected["loss"]), 30)
    assert best.with_name("evaluation-best-val.json").exists()


def test_on_pictures_in_folders_of_classes(best, tmp_path, capsys):
    folder = tmp_path / "pictures"
    for index, (image, label) in enumerate(zip(TEST.images, TEST.labels, strict=True)):
        path = folder / TEST.classes[label] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (folder / "ring" / "broken.png").write_text("text")
    content = run(best, images=folder)
    on_arrays = run(best)
    assert content["accuracy"] == on_arrays["accuracy"]
    assert content["loss"] == pytest.approx(on_arrays["loss"])
    assert content["confusion_matrix"] == on_arrays["confusion_matrix"]
    assert (content["dataset"], content["split"]) == (str(folder), None)
    (line,) = content["unreadable"]
    assert line.startswith(f"{folder / 'ring' / 'broken.png'}: must be a picture")
    out, err = capsys.readouterr()
    assert err == line + "\n"
    assert "60 pictures" in out
    assert "not counted, as they cannot be read: 1\n" in out
    assert json.loads(best.with_name("evaluation-best-pictures.json").read_text()) == content


def test_pictures_none_of_which_can_be_read(best, tmp_path):
    (tmp_path / "pictures" / "ring").mkdir(parents=True)
    (tmp_path / "pictures" / "ring" / "a.png").write_text("text")
    with pytest.raises(InputError, match=r"^--images .*: must hold pictures that can be read; none of 1 can$"):
        run(best, images=tmp_path / "pictures")
    assert not list(best.parent.glob("evaluation*"))


def test_a_data_set_of_other_classes(tmp_path):
    content = weights_content(model.build_network((0.0,) * 3, (1.0,) * 3, classes=3))
    path = tmp_path / "best.pt"
    checkpoint.save(path, {**content, "classes": ["a", "b", "c"]})
    with pytest.raises(InputError, match=r"must tell the classes of synthetic apart, and tells others$"):
        run(path)


def test_the_number_format_is_that_of_the_training_unless_asked(best):
    assert Evaluation(checkpoint=best).precision == "auto"
    loss = evaluate(Evaluation(checkpoint=best, device="cpu", precision="bf16"))["loss"]
    assert loss != run(best)["loss"]
    assert np.isclose(loss, run(best)["loss"], rtol=0.05)
