import contextlib
import json
import logging
import os
import socket
import sys
import warnings

import numpy as np
import pytest
import torch

from s10_resnet import options
from s10_resnet.data import dataset as data
from s10_resnet.data import synthetic
from s10_resnet.data.dataset import Split
from s10_resnet.errors import InputError, TrainingError
from s10_resnet.models import export as exporting
from s10_resnet.models import resnet as model
from s10_resnet.models.export import FORMATS
from s10_resnet.models.pretrained import load_model
from s10_resnet.utils import serialization as checkpoint
from tests.conftest import REPOSITORY
from tests.runs import small, small_network


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked for something")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A checkpoint of a small network."""
    monkeypatch.setattr(model, "build_network", small_network)
    return saved(tmp_path)


def saved(folder):
    """A checkpoint of a network that has seen some images: its BatchNorms have statistics of their own."""
    network = model.build_network((0.4, 0.5, 0.6), (0.2, 0.3, 0.25), classes=10, logit_scale=0.125)
    with torch.no_grad():
        network.train()(torch.from_numpy(synthetic.draw(20, seed=3)[0]))
    content = {
        "model": network.state_dict(),
        "epoch": 3,
        "test_accuracy": 0.75,
        "dataset": "synthetic",
        "classes": list(synthetic.CLASSES),
        "config": small(folder).to_json(),
    }
    path = folder / "run" / "best.pt"
    path.parent.mkdir()
    checkpoint.save(path, content)
    return path


def export(weights, kind, output=None, data_dir=None):
    return exporting.export(options.Export(weights, kind, output, data_dir or weights.parent / "data"))


def logits(weights, images):
    with torch.no_grad():
        return load_model(weights, "cpu").network(torch.from_numpy(images)).numpy()


def noise(count):
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def test_there_is_a_format_for_each_word():
    assert tuple(FORMATS) == options.FORMATS


def test_onnx_of_the_true_network(tmp_path, capfd):
    """Read by its own tools, without a line of this package."""
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    onnx = pytest.importorskip("onnx")
    weights = saved(tmp_path)
    before = set(weights.parent.iterdir())
    path = export(weights, "onnx")
    assert path == weights.parent / "best.onnx"
    assert set(weights.parent.iterdir()) - before == {path}  # no weights beside it
    content = path.read_bytes()
    for folder in (str(REPOSITORY), sys.prefix, str(tmp_path)):
        assert folder.encode() not in content

    onnx.checker.check_model(content, full_check=True)
    graph = onnx.load_model_from_string(content)
    assert {entry.key: entry.value for entry in graph.metadata_props} == {
        "classes": json.dumps(synthetic.CLASSES),
        "dataset": "synthetic",
    }
    session = sys.modules["onnxruntime"].InferenceSession(content, providers=["CPUExecutionProvider"])
    (entry,), (out,) = session.get_inputs(), session.get_outputs()
    assert (entry.name, entry.type, entry.shape) == ("images", "tensor(uint8)", ["batch", 32, 32, 3])
    assert (out.name, out.type, out.shape) == ("logits", "tensor(float)", ["batch", 10])
    for count in (1, 2, 5):
        found = session.run(["logits"], {"images": noise(count)})[0]
        np.testing.assert_allclose(found, logits(weights, noise(count)), rtol=0, atol=1e-5)

    said = capfd.readouterr()
    first, *_, last = said.out.splitlines()
    assert len(said.out.splitlines()) == 4
    assert first == f"{path}: {len(content) / 1e6:.1f} MB"
    assert last.startswith("largest logit difference 0.00000")
    assert last.endswith(" over 264 synthetic images")
    assert said.err == ""


def test_a_program_of_torch(weights, capfd):
    path = export(weights, "torch")
    assert path == weights.parent / "best.pt2"
    about = {"classes": "", "dataset": ""}
    network = torch.export.load(path, extra_files=about).module()
    for count in (1, 2, 5):
        found = network(torch.from_numpy(noise(count))).detach().numpy()
        np.testing.assert_allclose(found, logits(weights, noise(count)), rtol=0, atol=1e-5)
    assert about == {"classes": json.dumps(synthetic.CLASSES), "dataset": "synthetic"}
    assert str(REPOSITORY).encode() not in path.read_bytes()
    said = capfd.readouterr()
    assert len(said.out.splitlines()) == 4
    assert said.err == ""


def test_safetensors_hold_all_that_the_checkpoint_holds(weights):
    pytest.importorskip("safetensors")
    path = export(weights, "safetensors")
    assert path == weights.parent / "best.safetensors"
    shared, own = exporting.sharing.read(path), checkpoint.load(weights)
    tensors = [content.pop("model") for content in (shared, own)]
    assert shared == own
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[1])
    again = export(path, "safetensors", weights.parent / "again.safetensors")  # the export is a checkpoint, too
    assert exporting.sharing.read(again).keys() == exporting.sharing.read(path).keys()


def test_held_out_figures_stay_held_out_figures(weights):
    pytest.importorskip("safetensors")
    content = checkpoint.load(weights)
    checkpoint.save(weights, {"val_accuracy": content.pop("test_accuracy"), **content})
    loaded = load_model(export(weights, "safetensors"), "cpu")
    assert (loaded.split, loaded.accuracy) == ("val", 0.75)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("missing/best.pt2", "in a folder that exists"),
        ("run/best.pt/best.pt2", "in a folder that exists"),
        ("folder.pt2", "a file, not a folder"),
        ("run/best.pt", "a name that ends in .pt2"),
        ("best", "a name that ends in .pt2"),
        ("best.onnx", "a name that ends in .pt2"),
        ("link.pt2", "another file than the checkpoint"),
        ("n" * 300 + ".pt2", "a file that can be written (File name too long)"),
    ],
)
def test_an_output_that_cannot_be(weights, tmp_path, name, allowed):
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "link.pt2").symlink_to(weights)
    before = everything(tmp_path)
    with pytest.raises(InputError) as caught:
        export(weights, "torch", tmp_path / name)
    assert str(caught.value) == f"--output {tmp_path / name}: must be {allowed}"
    assert everything(tmp_path) == before


def test_a_checkpoint_is_never_its_own_export(weights):
    pytest.importorskip("safetensors")
    path = export(weights, "safetensors")
    content = path.read_bytes()
    with pytest.raises(InputError) as caught:
        export(path, "safetensors")
    assert str(caught.value) == f"--output {path}: must be another file than the checkpoint"
    assert path.read_bytes() == content


def everything(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize(("kind", "package"), [(kind, name) for kind in FORMATS for name in FORMATS[kind].packages])
def test_a_missing_package_is_said_before_anything_else(monkeypatch, tmp_path, kind, package):
    for other in FORMATS[kind].packages:
        monkeypatch.setitem(sys.modules, other, os)  # here, whatever it is
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError) as caught:
        export(tmp_path / "missing.pt", kind)
    name = package.split(".")[0]
    assert str(caught.value) == f"--format {kind}: needs {name}, which is not installed: pip install '.[export]'"


def test_it_is_checked_on_cifar10_where_that_is(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "load_cifar10", lambda root: (None, Split(noise(300), np.zeros(300), synthetic.CLASSES)))
    export(weights, "torch", data_dir=tmp_path)
    assert capsys.readouterr().out.endswith(" over 264 synthetic images\n")
    (tmp_path / "cifar-10-batches-py").mkdir()
    export(weights, "torch", data_dir=tmp_path)
    assert capsys.readouterr().out.endswith(" over 264 CIFAR-10 test images\n")
    images, _ = exporting._images(tmp_path)
    assert np.array_equal(images.numpy(), noise(300)[:264])


def test_the_real_images_are_taken(cifar_root):
    images, what = exporting._images(cifar_root)
    assert (images.shape, images.dtype, what) == ((264, 32, 32, 3), torch.uint8, "CIFAR-10 test images")


def test_damaged_images_are_refused_before_anything_is_written(weights, tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"something else")
    before = everything(tmp_path)
    with pytest.raises(InputError, match="data_batch_1 is missing"):
        export(weights, "torch", data_dir=tmp_path)
    assert everything(tmp_path) == before


def test_the_archive_alone_is_left_alone(weights, tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"an archive")
    export(weights, "torch", weights.parent / "new.pt2", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"cifar-10-python.tar.gz", "run"}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_of_other_weights_is_not_to_be_used(weights, monkeypatch, kind, capsys):
    """The file itself is read back: it is not enough that the network in memory is right."""
    for package in FORMATS[kind].packages:
        pytest.importorskip(package)
    write = exporting.write_whole

    def replace(path, content, *rest):
        """Writes another network, under the same name."""
        monkeypatch.setattr(exporting, "write_whole", write)
        monkeypatch.setattr(exporting.sharing, "write_whole", write)
        other = load_model(weights, "cpu")
        with torch.no_grad():
            other.network.resnet.linear.weight[4] *= 1.1
        FORMATS[kind].write(path, other)

    monkeypatch.setattr(exporting, "write_whole", replace)
    monkeypatch.setattr(exporting.sharing, "write_whole", replace)
    with pytest.raises(TrainingError) as caught:
        export(weights, kind)
    path = weights.with_suffix(FORMATS[kind].suffix)
    expected = logits(weights, synthetic.draw(264, seed=2)[0])
    off = np.abs(expected[:, 4]).max() / 10
    assert str(caught.value) == (
        f"{path}: is not to be used, delete it: its logits are off by up to {off:.3g}, where rounding explains "
        f"{np.abs(expected).max() / 1000:.3g}"
    )
    assert path.exists()
    assert capsys.readouterr().out == ""


def compare(expected, found):
    """Of networks that give these logits, two numbers an image, whatever they see."""
    tensors = [torch.tensor(logits).expand(264, 2).clone() for logits in (expected, found)]
    images = torch.zeros(264, 32, 32, 3, dtype=torch.uint8)
    iterators = [iter(tensor.split(exporting.BATCHES)) for tensor in tensors]
    sizes = []

    def network(batches):
        return lambda images: (sizes.append(len(images)), next(batches))[1]

    difference = exporting._compare("best.onnx", *(network(batches) for batches in iterators), images)
    assert sizes == [1, 7, 256] * 2
    return difference


@pytest.mark.parametrize(
    ("expected", "found", "difference"),
    [
        ([8.0, 1.0], [8.0, 1.0], 0),
        ([8.0, 1.0], [8.0, 1.0078125], 2**-7),
        ([8.0, 7.9921875], [8.0, 8.0], 2**-7),  # a tie
        ([8.0, 7.9980469], [7.9980469, 8.0], 2**-9),  # within rounding, another class wins
        ([-8.0, 1.0], [-8.0, 1.0078125], 2**-7),
        ([0.0, 0.0], [0.0, 0.0], 0),
    ],
)
def test_rounding_passes(expected, found, difference):
    assert compare(expected, found) == pytest.approx(difference, abs=1e-6)


@pytest.mark.parametrize(
    ("expected", "found", "message"),
    [
        ([8.0, 1.0], [8.0, 1.0090], "off by up to 0.009,"),
        ([-8.0, 1.0], [-8.0, 0.9910], "off by up to 0.009,"),
        ([8.0, 1.0], [1.0, 8.0], "off by up to 7, where rounding explains 0.008"),
        ([8.0, 1.0], [8.0, float("nan")], "off by up to nan,"),
        ([float("nan"), 1.0], [float("nan"), 1.0], "off by up to nan,"),
        ([8.0, float("inf")], [8.0, float("inf")], "off by up to nan,"),
        ([0.0, 0.0], [0.0, 1e-9], "off by up to 1e-09,"),
        ([8.0, 7.9882812], [7.9931641, 7.9951172], "changes a class that leads by 0.0117, where rounding explains"),
    ],
)
def test_more_than_rounding_does_not_pass(expected, found, message):
    with pytest.raises(TrainingError, match=r"^best\.onnx: is not to be used, delete it: ") as caught:
        compare(expected, found)
    assert message in str(caught.value)


def test_one_image_among_all_counts():
    images = torch.zeros(264, 32, 32, 3, dtype=torch.uint8)
    images[263] = 1

    def off(batch):
        return torch.ones(len(batch), 2) + 0.01 * batch[:, 0, 0, :2]

    with pytest.raises(TrainingError, match=r"off by up to 0\.01,"):
        exporting._compare("best.onnx", lambda batch: torch.ones(len(batch), 2), off, images)


def test_what_was_silenced_speaks_again(capfd, caplog):
    log = logging.getLogger("torch.onnx")
    with contextlib.suppress(ZeroDivisionError), exporting._quiet():
        print("talk")
        print("talk", file=sys.stderr)
        log.critical("talk")
        warnings.warn("talk", stacklevel=1)  # an error anywhere else in these tests
        raise ZeroDivisionError
    print("heard")
    assert capfd.readouterr() == ("heard\n", "")
    log.critical("heard")
    assert [record.message for record in caplog.records] == ["heard"]
    with pytest.warns(UserWarning, match="heard"):
        warnings.warn("heard", stacklevel=1)
