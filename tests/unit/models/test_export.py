import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from s10_resnet.config import ExportConfig
from s10_resnet.data import dataset as data
from s10_resnet.data import synthetic
from s10_resnet.data.dataset import Split
from s10_resnet.errors import InputError, TrainingError
from s10_resnet.models import export as exporting
from s10_resnet.models import resnet
from s10_resnet.models.export import FORMATS
from s10_resnet.models.pretrained import load_model
from s10_resnet.utils import serialization
from tests.conftest import REPOSITORY
from tests.runs import small_network

NO_NAME = "a name that ends in .safetensors, in a folder that exists"

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A checkpoint of a small network."""
    monkeypatch.setattr(resnet, "build_model", small_network)
    return saved(tmp_path)


def saved(folder):
    """A checkpoint of a network that has seen some images: its BatchNorms have statistics of their own."""
    network = resnet.build_model((0.4, 0.5, 0.6), (0.2, 0.3, 0.25), num_classes=10, logit_scale=0.125)
    with torch.no_grad():
        network.train()(torch.from_numpy(synthetic.generate(20, seed=3)[0]))
    content = {
        "model": network.state_dict(),
        "epoch": 3,
        "eval_accuracy": 0.75,
        "eval_split": "val",
        "dataset": "synthetic",
        "classes": list(synthetic.CLASSES),
        "config": {"logit_scale": 0.125, "name": "run"},
    }
    path = folder / "run" / "best.pt"
    path.parent.mkdir()
    serialization.save(path, content)
    return path


def export(weights, kind, output=None, data_dir=None):
    data_dir = data_dir or weights.parent / "data"
    return exporting.export(ExportConfig(checkpoint=weights, format=kind, output=output, data_dir=data_dir))


def logits(weights, images):
    with torch.no_grad():
        return load_model(weights, "cpu")(torch.from_numpy(images)).numpy()


def noise(count):
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


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
    opset, first, *_, last = said.out.splitlines()
    assert len(said.out.splitlines()) == 5
    assert opset == f"ONNX opset {graph.opset_import[0].version}, IR version {graph.ir_version}"
    assert first == f"{path}: {len(content) / 1e6:.1f} MB, onnx"
    assert last.startswith("largest logit difference 0.00000")
    assert last.endswith(" over 264 synthetic images")
    assert said.err == ""


def test_onnxruntime_is_told_to_send_nothing_before_it_is_imported(monkeypatch, tmp_path):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    seen = {}
    monkeypatch.setattr(
        exporting, "require_optional", lambda package, *_: seen.update({package: os.environ["ORT_DISABLE_TELEMETRY"]})
    )
    with pytest.raises(InputError):
        export(tmp_path / "missing.pt", "onnx")
    assert seen["onnxruntime"] == "1"


@pytest.mark.slow
def test_onnxruntime_connects_to_nothing_and_writes_nothing_at_home(weights, tmp_path):
    pytest.importorskip("onnxruntime")
    home, trace = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    script = "\n".join(
        (
            "import sys",
            "from pathlib import Path",
            "from s10_resnet.config import ExportConfig",
            "from s10_resnet.models import export, resnet",
            "from tests.runs import small_network",
            "resnet.build_model = small_network",
            "export.export(ExportConfig(checkpoint=Path(sys.argv[1]), format='onnx'))",
        )
    )
    strace = shutil.which("strace")
    watch = [strace, "-f", "-qq", "-e", "trace=connect", "-o", trace] if strace else []
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(home), "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([*watch, sys.executable, "-c", script, weights], env=environment, cwd=home, check=True)
    assert not list(home.iterdir())
    assert not strace or "AF_INET" not in trace.read_text()


def test_safetensors_hold_all_that_the_checkpoint_holds(weights):
    library = pytest.importorskip("safetensors.torch")
    path = export(weights, "safetensors")
    assert path == weights.parent / "best.safetensors"
    exported, own = (load_model(file, "cpu") for file in (path, weights))
    for name in ("classes", "dataset", "epoch", "eval_accuracy", "eval_split", "config"):
        assert getattr(exported, name) == getattr(own, name)
    tensors = [model.network.state_dict() for model in (exported, own)]
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[1].items():
        assert torch.equal(tensors[0][name], tensor)
        assert tensors[0][name].stride() == tensor.stride()
    assert library.load_file(path).keys() == tensors[1].keys()  # without a line of this package
    with sys.modules["safetensors"].safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["classes"]) == list(synthetic.CLASSES)
        assert file.metadata()["format"] == "pt"  # other programs look for it
    again = export(path, "safetensors", weights.parent / "again.safetensors")  # the export is a checkpoint, too
    assert load_model(again, "cpu").eval_accuracy == 0.75


def test_a_run_folder_is_its_last_weights(weights):
    pytest.importorskip("safetensors.torch")
    weights.rename(weights.parent / "last.pt")
    assert export(weights.parent, "safetensors") == weights.parent / "last.safetensors"


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("missing/best.safetensors", NO_NAME),
        ("run/best.pt/best.safetensors", NO_NAME),
        ("folder.safetensors", NO_NAME),
        ("best.onnx", NO_NAME),
        ("link.safetensors", "another file than the checkpoint"),
    ],
)
def test_an_output_that_cannot_be(weights, tmp_path, name, allowed):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "link.safetensors").symlink_to(weights)
    before = everything(tmp_path)
    with pytest.raises(InputError) as caught:
        export(weights, "safetensors", tmp_path / name)
    assert str(caught.value) == f"--output {tmp_path / name}: must be {allowed}"
    assert everything(tmp_path) == before


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
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"an archive, which is left alone")
    export(weights, "safetensors", data_dir=tmp_path)
    assert capsys.readouterr().out.endswith(" over 264 synthetic images\n")
    (tmp_path / "cifar-10-batches-py").mkdir()
    export(weights, "safetensors", data_dir=tmp_path)
    assert capsys.readouterr().out.endswith(" over 264 CIFAR-10 test images\n")
    images, _ = exporting._load_images(tmp_path)
    assert np.array_equal(images.numpy(), noise(300)[:264])


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_of_other_weights_is_not_written(weights, monkeypatch, kind, capsys):
    """The file itself is read back: it is not enough that the network in memory is right."""
    for package in FORMATS[kind].packages:
        pytest.importorskip(package)
    file_format = FORMATS[kind]

    def encode(_):
        other = load_model(weights, "cpu")
        with torch.no_grad():
            other.network.resnet.linear.weight[4] *= 1.1
        return file_format.encode(other)

    monkeypatch.setitem(FORMATS, kind, file_format._replace(encode=encode))
    with pytest.raises(TrainingError) as caught:
        export(weights, kind)
    path = weights.with_suffix(f".{kind}")
    expected = logits(weights, synthetic.generate(264, seed=2)[0])
    off = np.abs(expected[:, 4]).max() / 10
    assert str(caught.value) == (
        f"{path}: was not written, as its logits would differ by up to {off:.3g}; rounding explains "
        f"{np.abs(expected).max() / 1000:.3g}"
    )
    assert not path.exists()
    assert "largest logit difference" not in capsys.readouterr().out


def compare(expected, found):
    """Compares networks that give any image these two logits."""
    sizes = []

    def network(logits):
        return lambda images: sizes.append(len(images)) or torch.tensor(logits).expand(len(images), 2)

    images = torch.zeros(264, 32, 32, 3, dtype=torch.uint8)
    difference = exporting._compare(exporting.Path("best.onnx"), network(expected), network(found), images)
    assert sizes == [1, 7, 256] * 2
    return difference


def test_rounding_passes():
    assert compare([8.0, 1.0], [8.0, 1.0]) == 0
    assert compare([8.0, 1.0], [8.0, 1.0078125]) == 2**-7
    assert compare([-8.0, 1.0], [-8.0, 1.0078125]) == 2**-7


@pytest.mark.parametrize("found", [[8.0, 1.0090], [1.0, 8.0], [8.0, float("nan")], [float("inf"), 1.0]])
def test_more_than_rounding_does_not_pass(found):
    message = r"^best\.onnx: was not written, as its logits would differ by up to \S+; rounding explains 0.008$"
    with pytest.raises(TrainingError, match=message):
        compare([8.0, 1.0], found)
