import functools
import hashlib
import http.server
import pickle
import tarfile
import threading

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from s10_resnet import data
from s10_resnet.errors import InputError

NOWHERE = "http://127.0.0.1:9/cifar-10-python.tar.gz"  # the discard port: refused at once


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A small CIFAR-10 in the official form, which torchvision is made to take for the real one; no network."""
    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lists = {"train_list": [], "test_list": []}
    for name, part in [(f"data_batch_{i}", "train_list") for i in range(1, 6)] + [("test_batch", "test_list")]:
        pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [i % 10 for i in range(20)]}))
        lists[part].append([name, md5(folder / name)])
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class{i}" for i in range(10)]}))
    monkeypatch.setattr(CIFAR10, "train_list", lists["train_list"])
    monkeypatch.setattr(CIFAR10, "test_list", lists["test_list"])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(folder / "batches.meta")})
    monkeypatch.setattr(CIFAR10, "url", NOWHERE)
    return folder.parent


def test_real_cifar10(cifar_root):
    train, test = data.load_cifar10(cifar_root)
    assert (train.images.shape, test.images.shape) == ((50_000, 32, 32, 3), (10_000, 32, 32, 3))
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert train.classes[:3] == ("airplane", "automobile", "bird")


def test_a_folder_that_is_there_is_used_as_it_is(official):
    before = sorted(path.name for path in official.rglob("*"))
    train, test = data.load_cifar10(official)
    assert (len(train.labels), len(test.labels)) == (100, 20)
    assert (train.images.dtype, train.labels.dtype) == (np.uint8, np.int64)
    raw = pickle.loads((official / "cifar-10-batches-py" / "test_batch").read_bytes())["data"]
    np.testing.assert_array_equal(test.images[5, :, :, 2].ravel(), raw[5, 2048:])  # planes of 1024: R, G, B
    assert test.classes[9] == "class9"
    assert sorted(path.name for path in official.rglob("*")) == before


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "hostile"])
def test_a_damaged_file_is_named_and_not_unpickled(official, tmp_path, name, damage):
    path, witness = official / "cifar-10-batches-py" / name, tmp_path / "executed"

    class Hostile:
        def __reduce__(self):
            return exec, (f"open({str(witness)!r}, 'w').close()",)

    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(InputError) as caught:
        data.load("auto", official)  # no substitute either
    message = str(caught.value)
    assert f"cifar-10-batches-py/{name} is {'missing' if damage == 'missing' else 'not the official file'}" in message
    assert "\n" not in message
    assert not witness.exists()


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", NOWHERE)
    return tmp_path / "nothing" / "here"


def test_no_data_and_no_network_says_what_to_do(offline):
    with pytest.raises(InputError) as caught:
        data.load("cifar10", offline)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        str(offline),
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        "--data-dir",
        "--dataset synthetic",
    ):
        assert part in message
    assert not offline.exists()


def test_only_auto_substitutes(offline):
    train, test, name = data.load("auto", offline)
    assert name == "synthetic"
    assert (len(train.labels), len(test.labels)) == (10_000, 2_000)
    assert len(train.classes) == 10
    assert not np.array_equal(train.images[:2000], test.images)


def test_auto_prefers_cifar10(official):
    assert data.load("auto", official)[2] == "cifar10"


def test_an_archive_in_the_folder_is_unpacked_without_network(official, tmp_path, monkeypatch):
    root = tmp_path / "archive"
    root.mkdir()
    with tarfile.open(root / CIFAR10.filename, "w:gz") as archive:
        archive.add(official / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(root / CIFAR10.filename))
    assert len(data.load_cifar10(root)[0].labels) == 100


def test_a_download_happens_once_and_shows_its_progress(official, tmp_path, monkeypatch, capfd):
    served = tmp_path / "served"
    served.mkdir()
    with tarfile.open(served / CIFAR10.filename, "w:gz") as archive:
        archive.add(official / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(served / CIFAR10.filename))
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            asked.append(self.command)

    handler = functools.partial(Handler, directory=served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{CIFAR10.filename}")
        root = tmp_path / "new" / "root"
        assert len(data.load_cifar10(root)[0].labels) == 100
        assert asked
        assert "100%" in capfd.readouterr().err
        asked.clear()
        assert len(data.load_cifar10(root)[1].labels) == 20
        assert not asked
        server.shutdown()


def test_a_damaged_archive_is_refused(official, tmp_path):
    root = tmp_path / "archive"
    root.mkdir()
    (root / CIFAR10.filename).write_bytes(b"not what it says")
    with pytest.raises(InputError, match="download failed"):
        data.load_cifar10(root)
    assert not (root / "cifar-10-batches-py").exists()


def test_hold_out_takes_of_every_class_its_share(split):
    rest, held = data.hold_out(split, 20)
    assert np.bincount(held.labels).tolist() == [2] * 10
    assert np.bincount(rest.labels).tolist() == [3] * 10
    pictures = [image.tobytes() for part in (rest, held) for image in part.images]
    assert sorted(pictures) == sorted(image.tobytes() for image in split.images)


def test_hold_out_keeps_images_and_labels_together(split):
    label_of = {image.tobytes(): label for image, label in zip(split.images, split.labels, strict=True)}
    for part in data.hold_out(split, 15):
        assert [label_of[image.tobytes()] for image in part.images] == part.labels.tolist()


def test_hold_out_is_proportional_where_classes_are_not_equal():
    labels = np.repeat([0, 1], [80, 20])
    images = np.zeros((100, 32, 32, 3), np.uint8)
    assert np.bincount(data.hold_out(data.Split(images, labels, ("a", "b")), 10)[1].labels).tolist() == [8, 2]


def test_hold_out_is_the_same_every_time(split):
    np.testing.assert_array_equal(data.hold_out(split, 20)[1].images, data.hold_out(split, 20)[1].images)
    assert not np.array_equal(data.hold_out(split, 20)[1].images, data.hold_out(split, 20, seed=1)[1].images)


@pytest.mark.parametrize("size", [50, 51])
def test_hold_out_leaves_something_to_train_on(split, size):
    with pytest.raises(InputError, match=f"--val-size {size}: must be below the number of training images, 50"):
        data.hold_out(split, size)


def test_synthetic_draws_train_and_test_apart():
    train, test = data.load_synthetic(20, 20)
    assert train.images.shape == test.images.shape == (20, 32, 32, 3)
    assert {image.tobytes() for image in train.images}.isdisjoint(image.tobytes() for image in test.images)
