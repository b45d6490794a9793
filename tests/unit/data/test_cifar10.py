import functools
import hashlib
import http.client
import http.server
import io
import pickle
import shutil
import ssl
import subprocess
import sys
import tarfile
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from s10_resnet.data import cifar10, dataset
from s10_resnet.errors import DownloadError, InputError

NOWHERE = "http://127.0.0.1:9/cifar-10-python.tar.gz"  # the discard port: connections are refused
NO_SPACE = OSError(28, "No space left on device")
BATCHES = CIFAR10.base_folder

# SHA-256 of the arrays, from an implementation that parsed the official files itself.
IMAGES = (
    "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
)
LABELS = (
    "f5cfe00b0f00968c0cc5ff3b1d2de51b10e33efa277c2986f4e0fa63e58c9f4f",
    "cbb7365de8ed11f05cc4c3a1e7f78144127c5e851efd83762fb18202461230bb",
)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def sha256(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def raises(error):
    def function(*args, **kwargs):
        raise error

    return function


def refusal(root):
    """The one-line error message for a folder; ``auto`` does not hide it behind the synthetic data set."""
    with pytest.raises(InputError) as caught:
        dataset.load_dataset("auto", root)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"--data-dir {root}: ")
    return message


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A small data set in CIFAR-10's format, whose MD5 checksums torchvision is given as the official ones."""
    folder = tmp_path / "root" / BATCHES
    folder.mkdir(parents=True)
    for seed, (name, _) in enumerate([*CIFAR10.train_list, *CIFAR10.test_list]):
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [i % 10 for i in range(20)]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class{i}" for i in range(10)]}))
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, part, [[name, md5(folder / name)] for name, _ in getattr(CIFAR10, part)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(folder / "batches.meta")})
    monkeypatch.setattr(CIFAR10, "url", NOWHERE)
    return folder.parent


@pytest.fixture
def archive(official, tmp_path, monkeypatch):
    """Writes the archive of the small data set, with the given members added, into a folder of its own."""

    def write(*members):
        root = tmp_path / "archive"
        root.mkdir()
        path = root / CIFAR10.filename
        with tarfile.open(path, "w:gz") as file:
            file.add(official / BATCHES, BATCHES)
            for member in members:
                file.addfile(member, io.BytesIO(b"x" * member.size))
        monkeypatch.setattr(CIFAR10, "tgz_md5", md5(path))
        return root

    return write


@pytest.fixture
def serve(monkeypatch):
    """Serves a folder over HTTP and makes CIFAR-10 be downloaded from there; returns the list of requests."""
    servers = []

    def start(folder):
        requests = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args):
                requests.append(self.command)

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{CIFAR10.filename}")
        return requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


# The files


def test_real_cifar10_has_the_pixels_labels_and_classes_that_it_always_had(cifar_root):
    for split, size, images, labels in zip(
        dataset.load_cifar10(cifar_root), (50_000, 10_000), IMAGES, LABELS, strict=True
    ):
        assert (split.images.shape, split.images.dtype, split.labels.dtype) == ((size, 32, 32, 3), np.uint8, np.int64)
        assert (sha256(split.images), sha256(split.labels)) == (images, labels)
        assert split.classes == CLASSES


def test_arrays_are_in_channels_last_memory_and_can_be_written_to(official):
    train, test = dataset.load_cifar10(official)
    assert (len(train.labels), len(test.labels)) == (100, 20)
    raw = pickle.loads((official / BATCHES / "test_batch").read_bytes())["data"]
    np.testing.assert_array_equal(test.images[5, :, :, 2].ravel(), raw[5, 2048:])  # planes of 1024: R, G, B
    assert test.labels.tolist() == [i % 10 for i in range(20)]
    assert test.classes[9] == "class9"
    for split in (train, test):
        assert split.images.flags.c_contiguous
        assert split.images.flags.writeable


def test_a_folder_that_has_the_images_is_only_read(official, monkeypatch, capfd):
    before = {path: path.stat().st_mtime_ns for path in (official, *official.rglob("*"))}
    for method in ("mkdir", "rename", "replace", "write_bytes", "touch"):
        monkeypatch.setattr(Path, method, raises(OSError(30, "Read-only file system")))
    dataset.load_cifar10(official)
    assert {path: path.stat().st_mtime_ns for path in (official, *official.rglob("*"))} == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_file_is_named_and_not_unpickled(official, monkeypatch, name, damage):
    path = official / BATCHES / name
    expected = md5(path)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    if name != "batches.meta":  # which torchvision checks last
        monkeypatch.setattr(pickle, "load", raises(AssertionError("unpickled")))
    state = "missing" if damage == "missing" else "damaged"
    message = refusal(official)
    assert f"{BATCHES}/{name} is {state} (expected MD5 {expected})" in message
    assert message.endswith(f"Remove {official / BATCHES} to have CIFAR-10 downloaded again.")


@pytest.mark.parametrize("relative", [False, True])
def test_one_folder_too_deep_is_answered_with_the_parent(official, monkeypatch, relative):
    monkeypatch.setattr(cifar10, "download_url", raises(AssertionError("downloaded")))
    before = names(official / BATCHES)
    monkeypatch.chdir(official / BATCHES)
    message = refusal(Path() if relative else official / BATCHES)
    assert message.endswith(f"must be the folder that holds {BATCHES}/")
    assert names(official / BATCHES) == before


# The archive


def test_an_archive_in_the_folder_is_unpacked_without_network(archive):
    root = archive()
    assert len(dataset.load_cifar10(root)[0].labels) == 100
    assert names(root) == [BATCHES, CIFAR10.filename]


def test_a_damaged_archive_is_named_and_left_alone(archive, monkeypatch):
    root = archive()
    path, before = root / CIFAR10.filename, (root / CIFAR10.filename).read_bytes()
    monkeypatch.setattr(CIFAR10, "tgz_md5", "0123")
    assert f"{CIFAR10.filename} is damaged (expected MD5 0123). Remove {path} to" in refusal(root)
    assert names(root) == [CIFAR10.filename]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "kind", "target"),
    [("../evil", tarfile.REGTYPE, ""), (f"{BATCHES}/link", tarfile.SYMTYPE, "../../../evil")],
)
def test_members_outside_the_folder_are_refused(archive, tmp_path, name, kind, target):
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, target, int(kind == tarfile.REGTYPE)
    root = archive(member)
    with pytest.raises(tarfile.FilterError, match="outside the destination"):
        dataset.load_cifar10(root)
    assert names(root) == [CIFAR10.filename]
    assert names(tmp_path) == ["archive", "root"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), NO_SPACE])
def test_an_extraction_that_breaks_off_leaves_nothing(archive, monkeypatch, error):
    root, makefile = archive(), tarfile.TarFile.makefile

    def write(file, info, path):
        makefile(file, info, path)
        assert BATCHES not in names(root)  # nor would a kill leave a part of it
        if info.name.endswith("data_batch_4"):
            raise error

    monkeypatch.setattr(tarfile.TarFile, "makefile", write)
    if error is NO_SPACE:
        assert f"({root}: No space left on device)" in refusal(root)
    else:
        with pytest.raises(KeyboardInterrupt):
            dataset.load_dataset("auto", root)
    assert names(root) == [CIFAR10.filename]


# The download


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", NOWHERE)
    return tmp_path / "nothing" / "here"


def test_no_data_and_no_network_says_what_to_do(offline):
    with pytest.raises(DownloadError) as caught:
        dataset.load_dataset("cifar10", offline)
    message = str(caught.value)
    assert "\n" not in message
    parts = str(offline), "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "--data-dir", "--dataset synth"
    assert all(part in message for part in parts)
    assert names(offline) == []


@pytest.mark.parametrize("proxy", ["http://host:port", "no proxy", f"http://{'x' * 70}:80"])
def test_a_proxy_that_cannot_be_parsed_is_a_failed_download(offline, monkeypatch, proxy):
    monkeypatch.setattr(CIFAR10, "url", "http://cifar.invalid/cifar-10-python.tar.gz")
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setattr(urllib.request, "_opener", None)  # urllib keeps the first proxy that it read
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(DownloadError, match="the download of CIFAR-10 failed"):
        dataset.load_cifar10(offline)
    assert names(offline) == []


def test_a_download_happens_once_and_its_progress_is_not_on_stdout(archive, serve, tmp_path, capfd):
    requests = serve(archive())
    root = tmp_path / "new" / "root"
    assert len(dataset.load_cifar10(root)[0].labels) == 100
    assert requests
    out, err = capfd.readouterr()
    assert not out
    assert "100%" in err
    assert names(root) == [BATCHES, CIFAR10.filename]
    requests.clear()
    assert len(dataset.load_cifar10(root)[1].labels) == 20
    shutil.rmtree(root / BATCHES)  # as the message on a damaged file says
    assert len(dataset.load_cifar10(root)[1].labels) == 20
    assert not requests


def test_what_torchvision_prints_is_not_on_stdout(offline, monkeypatch, capfd):
    def download(*args):
        print("Downloading ...")
        raise RuntimeError

    monkeypatch.setattr(cifar10, "download_url", download)
    with pytest.raises(DownloadError):
        dataset.load_cifar10(offline)
    assert capfd.readouterr() == ("", "Downloading ...\n")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (NO_SPACE, InputError),
        (ConnectionResetError(104, "Connection reset by peer"), DownloadError),
        (TimeoutError("The read operation timed out"), DownloadError),
        (http.client.IncompleteRead(b""), DownloadError),
        (ssl.SSLError(1, "bad record mac"), DownloadError),
        (urllib.error.URLError("no host given"), DownloadError),
    ],
)
def test_a_download_that_breaks_off_leaves_nothing(tmp_path, monkeypatch, error, expected):
    def download(url, root, filename, md5):
        Path(root, filename).write_bytes(b"the first half")
        raise error

    monkeypatch.setattr(cifar10, "download_url", download)
    (tmp_path / "old").mkdir()
    for root in (tmp_path / "old", tmp_path / "new" / "root"):
        with pytest.raises(expected) as caught:
            dataset.load_cifar10(root)
        assert type(caught.value) is expected
        assert names(root) == []


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_download(offline, monkeypatch):
    monkeypatch.setattr(cifar10, "download_url", raises(AssertionError("downloaded")))
    monkeypatch.setattr("tempfile.mkdtemp", raises(PermissionError(13, "Permission denied", str(offline))))
    assert f"({offline}: Permission denied)" in refusal(offline)
    assert names(offline) == []


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert "File exists" in refusal(tmp_path / "file")


# auto


def test_only_auto_falls_back_on_the_synthetic_data_set(offline):
    train, test, name = dataset.load_dataset("auto", offline)
    assert name == "synthetic"
    assert (len(train.labels), len(test.labels), len(train.classes)) == (10_000, 2_000, 10)
    assert not np.array_equal(train.images[:2000], test.images)


def test_the_synthetic_data_set_does_not_import_torchvision():
    code = "import sys; from s10_resnet.data import dataset, loader; dataset.load_dataset('synthetic', None); "
    code += "print('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_an_error_with_intact_files_is_that_of_torchvision(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("an error of torchvision")

    (tmp_path / "cifar-10-batches-py").mkdir()
    monkeypatch.setattr(cifar10, "check_integrity", lambda *_: True)
    monkeypatch.setattr(cifar10, "CIFAR10", type("CIFAR10", (cifar10.CIFAR10,), {"__init__": fail}))
    with pytest.raises(InputError, match=f"^--data-dir {tmp_path}: an error of torchvision$"):
        cifar10.read_cifar10(tmp_path)
