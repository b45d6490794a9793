import builtins
import functools
import gzip
import hashlib
import http.client
import http.server
import io
import pickle
import shutil
import ssl
import struct
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy._core.multiarray import _reconstruct
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import download_url

from s10_resnet.data import cifar10
from s10_resnet.data import dataset as data
from s10_resnet.errors import DownloadError, InputError

NOWHERE = "http://127.0.0.1:9/cifar-10-python.tar.gz"  # the discard port: refused at once
NO_SPACE = OSError(28, "No space left on device")


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def pickled(content):
    return pickle.dumps(content, protocol=3)  # the newest that has the names of the official files, whose own is 2


def batch(seed=0, size=20):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, 3072), dtype=np.uint8)
    return {"data": pixels, "labels": [i % 10 for i in range(size)]}


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A small CIFAR-10 in the official form, which torchvision is made to take for the real one; no network."""
    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    lists = {"train_list": [], "test_list": []}
    for i, (name, part) in enumerate(
        [(f"data_batch_{i}", "train_list") for i in range(1, 6)] + [("test_batch", "test_list")]
    ):
        (folder / name).write_bytes(pickled(batch(seed=i)))
        lists[part].append([name, md5(folder / name)])
    (folder / "batches.meta").write_bytes(pickled({"label_names": [f"class{i}" for i in range(10)]}))
    monkeypatch.setattr(CIFAR10, "train_list", lists["train_list"])
    monkeypatch.setattr(CIFAR10, "test_list", lists["test_list"])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(folder / "batches.meta")})
    monkeypatch.setattr(CIFAR10, "url", NOWHERE)
    return folder.parent


@pytest.fixture
def replace(official, monkeypatch):
    """Replaces a file by another content whose MD5 is taken for the official one, as a collision would."""

    def replace(name, content):
        path = official / "cifar-10-batches-py" / name
        path.write_bytes(content)
        for entry in (*CIFAR10.train_list, *CIFAR10.test_list):
            if entry[0] == name:
                entry[1] = md5(path)
        if name == "batches.meta":
            monkeypatch.setitem(CIFAR10.meta, "md5", md5(path))

    return replace


@pytest.fixture
def archive(official, tmp_path, monkeypatch):
    """Writes an archive of the small CIFAR-10, whose MD5 is taken for the official one, into a folder of its own."""

    def write(*extra, damage=bytes):
        root = tmp_path / "archive"
        root.mkdir()
        path = root / CIFAR10.filename
        with tarfile.open(path, "w:gz") as file:
            file.add(official / "cifar-10-batches-py", "cifar-10-batches-py")
            for member in extra:
                file.addfile(member, io.BytesIO(b"x" * member.size))
        path.write_bytes(damage(path.read_bytes()))
        monkeypatch.setattr(CIFAR10, "tgz_md5", md5(path))
        return root

    return write


@pytest.fixture
def serve(monkeypatch):
    """Serves a folder over HTTP, from where CIFAR-10 is then downloaded; returns the list of requests."""
    servers = []

    def start(folder):
        asked = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *arguments):
                asked.append(self.command)

        handler = functools.partial(Handler, directory=folder)
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{servers[-1].server_port}/{CIFAR10.filename}")
        return asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def swap(monkeypatch):
    """Puts another content into a file as soon as it was opened: who opens it again reads something else."""
    contents, real = {}, io.open

    def open_and_swap(file, *arguments, **options):
        opened = real(file, *arguments, **options)
        content = contents.pop(Path(file), None) if isinstance(file, str | Path) else None
        if content is not None:
            other = Path(f"{file}.other")
            with real(other, "wb") as copy:
                copy.write(content)
            other.replace(file)
        return opened

    monkeypatch.setattr(io, "open", open_and_swap)
    monkeypatch.setattr(builtins, "open", open_and_swap)
    return contents


class Hostile:
    """Pickles to a call that makes a file."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return exec, (f"open({str(self.witness)!r}, 'w').close()",)


class Objects:
    """Pickles to a dtype of Python objects that says it holds none."""

    def __reduce__(self):
        return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)


class Addresses:
    """Pickles to an array that makes numpy take a number in the file for the address of an object."""

    def __reduce__(self):
        return _reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), Objects(), False, struct.pack("P", 0x41414141))


class Crash:
    """Pickles to a crash of the process by the names of the official files alone."""

    def __reduce__(self):
        return np.ndarray, (Addresses(),)


def raises(error):
    def function(*arguments, **options):
        raise error

    return function


def refusal(root):
    """The one line that says why a folder is refused; nothing stands in for it."""
    with pytest.raises(InputError) as caught:
        data.load("auto", root)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"--data-dir {root}: ")
    return message


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_real_cifar10(cifar_root):
    splits = data.load_cifar10(cifar_root)
    for split, size, reference in zip(
        splits, (50_000, 10_000), (CIFAR10(cifar_root), CIFAR10(cifar_root, train=False)), strict=True
    ):
        np.testing.assert_array_equal(split.images, reference.data)
        assert split.images.shape == (size, 32, 32, 3)
        assert split.labels.tolist() == reference.targets
        assert split.classes == tuple(reference.classes)


def test_the_same_as_torchvision(official):
    for split, train in zip(data.load_cifar10(official), (True, False), strict=True):
        reference = CIFAR10(official, train=train)
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int64)
        assert split.images.flags.c_contiguous
        assert split.images.flags.writeable
        np.testing.assert_array_equal(split.images, reference.data)
        assert split.labels.tolist() == reference.targets
        assert split.classes == tuple(reference.classes)


def test_a_folder_that_is_there_is_only_read(official):
    before = {path: path.stat().st_mtime_ns for path in (official, *official.rglob("*"))}
    train, test = data.load_cifar10(official)
    assert (len(train.labels), len(test.labels)) == (100, 20)
    raw = pickle.loads((official / "cifar-10-batches-py" / "test_batch").read_bytes())["data"]
    np.testing.assert_array_equal(test.images[5, :, :, 2].ravel(), raw[5, 2048:])  # planes of 1024: R, G, B
    assert test.classes[9] == "class9"
    assert {path: path.stat().st_mtime_ns for path in (official, *official.rglob("*"))} == before


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "hostile"])
def test_a_damaged_file_is_named_and_nothing_is_unpickled(official, tmp_path, monkeypatch, name, damage):
    path, witness = official / "cifar-10-batches-py" / name, tmp_path / "executed"
    expected = md5(path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(pickled(Hostile(witness)))
    monkeypatch.setattr(cifar10, "_Unpickler", raises(AssertionError("unpickled")))
    message = refusal(official)
    assert f"cifar-10-batches-py/{name} is {'missing' if damage == 'missing' else 'not the official file'}" in message
    assert f"(MD5 must be {expected})" in message
    assert not witness.exists()


def test_a_file_swapped_after_its_check_is_not_used(official, swap):
    before = data.load_cifar10(official)
    files = [name for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list)]
    swap.update({official / "cifar-10-batches-py" / name: pickled(batch(seed=99)) for name in files})
    swap[official / "cifar-10-batches-py" / "batches.meta"] = pickled({"label_names": ["other"] * 10})
    for old, new in zip(before, data.load_cifar10(official), strict=True):
        np.testing.assert_array_equal(new.images, old.images)
        assert new.classes == old.classes
    assert not swap  # every file was
    assert "is not the official file" in refusal(official)


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_hostile_file_of_the_right_md5_runs_nothing(official, tmp_path, replace, name, hidden):
    witness = tmp_path / "executed"
    content = {**batch(), "label_names": ["name"] * 10, "more": Hostile(witness)}
    replace(name, pickled(content if hidden else content["more"]))
    assert f"cifar-10-batches-py/{name} has the right MD5 but not the official form" in refusal(official)
    assert not witness.exists()


@pytest.mark.filterwarnings("ignore")  # numpy would warn before it crashed
def test_numpy_is_not_made_to_crash(official, replace):
    replace("data_batch_3", pickled({**batch(), "data": Crash()}))
    assert "cifar-10-batches-py/data_batch_3 has the right MD5 but not the official form" in refusal(official)


OTHER_FORMS = {
    "int8": {"data": batch()["data"].astype(np.int8)},
    "float": {"data": batch()["data"].astype(np.float32)},
    "too narrow": {"data": batch()["data"][:, 1:]},
    "four dimensions": {"data": batch()["data"].reshape(20, 3, 32, 32)},
    "by columns": {"data": np.asfortranarray(batch()["data"])},
    "lists": {"data": batch()["data"].tolist()},
    "too few labels": {"labels": [0] * 19},
    "too many labels": {"labels": [0] * 21},
    "label 10": {"labels": [10] * 20},
    "label -1": {"labels": [-1] * 20},
    "label True": {"labels": [True] * 20},
    "label 1.0": {"labels": [1.0] * 20},
    "text": {"labels": "3" * 20},
    "no labels": {"labels": None},
}


@pytest.mark.parametrize("change", OTHER_FORMS.values(), ids=OTHER_FORMS)
def test_a_batch_of_another_form_is_named(official, replace, change):
    replace("test_batch", pickled({**batch(), **change}))
    assert "cifar-10-batches-py/test_batch has the right MD5 but not the official form" in refusal(official)


@pytest.mark.parametrize("label_names", [["name"] * 9, ["name"] * 9 + [b"name"], ("name",) * 10, "0123456789", None])
def test_class_names_of_another_form_are_named(official, replace, label_names):
    replace("batches.meta", pickled({"label_names": label_names}))
    assert "cifar-10-batches-py/batches.meta has the right MD5 but not the official form" in refusal(official)


@pytest.mark.parametrize("content", [b"", b"no pickle", pickled([1]), pickled({}), pickled(batch())[:-1]])
@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_what_is_no_pickled_dictionary_is_named(official, replace, name, content):
    replace(name, content)
    assert f"cifar-10-batches-py/{name} has the right MD5 but not the official form" in refusal(official)


def test_a_file_that_cannot_be_read_is_named(official, monkeypatch):
    path = official / "cifar-10-batches-py" / "data_batch_1"
    monkeypatch.setattr(Path, "read_bytes", raises(PermissionError(13, "Permission denied", str(path))))
    assert f"({path}: Permission denied)" in refusal(official)


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


def test_an_archive_in_the_folder_is_unpacked_without_network(archive):
    root = archive()
    assert len(data.load_cifar10(root)[0].labels) == 100
    assert names(root) == ["cifar-10-batches-py", CIFAR10.filename]


def test_an_archive_swapped_after_its_check_is_not_used(archive, swap):
    root = archive()
    swap[root / CIFAR10.filename] = b"another content"
    assert len(data.load_cifar10(root)[0].labels) == 100
    assert not swap


def test_a_damaged_archive_is_refused_and_left_alone(archive, monkeypatch):
    root = archive()
    before = (root / CIFAR10.filename).read_bytes()
    monkeypatch.setattr(CIFAR10, "tgz_md5", "0123")
    path = root / CIFAR10.filename
    assert f"{CIFAR10.filename} is not the official file (MD5 must be 0123). Remove {path} to" in refusal(root)
    assert names(root) == [CIFAR10.filename]
    assert path.read_bytes() == before


def member(name, **attributes):
    info = tarfile.TarInfo(name)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info


@pytest.mark.parametrize(
    "hostile",
    [
        member("../evil", size=1),
        member("cifar-10-batches-py/../../evil", size=1),
        member("{outside}/evil", size=1),
        member("cifar-10-batches-py/link", type=tarfile.SYMTYPE, linkname="{outside}"),
        member("cifar-10-batches-py/link", type=tarfile.SYMTYPE, linkname="../../../evil"),
        member("cifar-10-batches-py/link", type=tarfile.SYMTYPE, linkname="test_batch"),
        member("cifar-10-batches-py/link", type=tarfile.LNKTYPE, linkname="cifar-10-batches-py/test_batch"),
        member("cifar-10-batches-py/pipe", type=tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.type.decode()}-{info.name}-{info.linkname}",
)
def test_members_that_lead_out_of_the_folder_are_refused(archive, tmp_path, hostile):
    outside = tmp_path / "outside"
    outside.mkdir()
    root = archive(
        hostile.replace(name=hostile.name.format(outside=outside), linkname=hostile.linkname.format(outside=outside))
    )
    assert f"{CIFAR10.filename} cannot be unpacked (" in refusal(root)
    assert names(root) == [CIFAR10.filename]
    assert names(tmp_path) == ["archive", "outside", "root"]
    assert names(outside) == []


DAMAGES = {
    "empty": lambda content: b"",
    "cut in the header": lambda content: content[:5],
    "cut in the first file": lambda content: content[:5000],
    "cut in the last file": lambda content: content[:-1000],
    "no gzip from the middle on": lambda content: gzip.compress(gzip.decompress(content)[:100_000]) + b"no gzip",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_archive_of_the_right_md5_is_refused(archive, damage):
    root = archive(damage=damage)
    assert f"{CIFAR10.filename} cannot be unpacked (" in refusal(root)
    assert names(root) == [CIFAR10.filename]


@pytest.fixture
def break_extraction(monkeypatch):
    """Lets extractions break off after four files by the error that it holds, as long as it holds one."""
    errors, makefile = [], tarfile.TarFile.makefile

    def write(file, info, path):
        makefile(file, info, path)
        if errors and info.name.endswith("data_batch_4"):
            assert not list(Path(path).parents[2].glob("cifar-10-batches-py"))  # nor would a kill leave a part of it
            raise errors[0]

    monkeypatch.setattr(tarfile.TarFile, "makefile", write)
    return errors


def test_an_interrupted_extraction_leaves_nothing(archive, break_extraction):
    root = archive()
    break_extraction.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        data.load("auto", root)
    assert names(root) == [CIFAR10.filename]


def test_a_full_disk_while_extracting_is_told(archive, break_extraction):
    root = archive()
    break_extraction.append(NO_SPACE)
    assert f"({root}: No space left on device)" in refusal(root)
    assert names(root) == [CIFAR10.filename]


@pytest.fixture
def killed_extraction(archive, break_extraction, monkeypatch):
    """A folder with an archive, and in it what the extraction leaves that has no time to tidy up."""
    root = archive()
    break_extraction.append(KeyboardInterrupt())
    with monkeypatch.context() as context:
        context.setattr(shutil, "rmtree", lambda *arguments, **options: None)
        with pytest.raises(KeyboardInterrupt):
            data.load_cifar10(root)
    break_extraction.clear()
    (left,) = root.glob(".*")
    return root, left


def test_what_a_killed_extraction_left_is_removed(killed_extraction):
    root, left = killed_extraction
    (left / "cifar-10-batches-py" / "stale").touch()
    assert len(data.load_cifar10(root)[0].labels) == 100
    assert names(root) == ["cifar-10-batches-py", CIFAR10.filename]
    assert "stale" not in names(root / "cifar-10-batches-py")


def test_no_extraction_into_a_linked_folder(killed_extraction, tmp_path):
    root, left = killed_extraction
    shutil.rmtree(left)
    left.symlink_to(tmp_path / "outside")
    (tmp_path / "outside").mkdir()
    assert f"({left}: File exists)" in refusal(root)
    assert names(tmp_path / "outside") == []


def test_a_download_happens_once_and_shows_its_progress(archive, serve, tmp_path, capfd):
    asked = serve(archive())
    root = tmp_path / "new" / "root"
    assert len(data.load_cifar10(root)[0].labels) == 100
    assert asked
    assert "100%" in capfd.readouterr().err
    assert names(root) == ["cifar-10-batches-py", CIFAR10.filename]
    asked.clear()
    assert len(data.load_cifar10(root)[1].labels) == 20
    assert not asked


def test_a_download_of_the_wrong_md5_leaves_nothing(archive, serve, tmp_path, monkeypatch):
    asked = serve(archive())
    monkeypatch.setattr(CIFAR10, "tgz_md5", "0123")
    with pytest.raises(DownloadError, match=r"the download failed \(.*MD5 0123"):
        data.load_cifar10(tmp_path / "new" / "root")
    assert asked
    assert not (tmp_path / "new").exists()


@pytest.fixture
def break_download(monkeypatch):
    """Lets a download break off in the middle by the error that it is given."""

    def breaks_off(error):
        def download(url, root, filename, md5):
            (Path(root) / filename).write_bytes(b"the first half")
            raise error

        monkeypatch.setattr(cifar10, "download_url", download)

    return breaks_off


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), ConnectionResetError(104, "Connection reset by peer"), NO_SPACE]
)
def test_a_download_that_breaks_off_leaves_nothing(break_download, tmp_path, error):
    break_download(error)
    (tmp_path / "old").mkdir()
    for root in (tmp_path / "old", tmp_path / "new" / "root"):
        with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else InputError):
            data.load_cifar10(root)
    assert names(tmp_path) == ["old"]
    assert names(tmp_path / "old") == []


def test_a_full_disk_while_downloading_is_told(break_download, tmp_path):
    break_download(NO_SPACE)
    assert f"({tmp_path}: No space left on device)" in refusal(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(104, "Connection reset by peer"),
        TimeoutError("The read operation timed out"),
        http.client.IncompleteRead(b""),
        ssl.SSLError(1, "bad record mac"),
    ],
)
def test_a_connection_that_breaks_off_is_a_failed_download(break_download, tmp_path, error):
    break_download(error)
    with pytest.raises(DownloadError, match="the download failed"):
        data.load_cifar10(tmp_path)


@pytest.mark.parametrize("linked", [False, True])
def test_what_a_killed_download_left_is_not_written_to(archive, serve, break_download, tmp_path, monkeypatch, linked):
    root = tmp_path / "new"
    with monkeypatch.context() as context:
        context.setattr(Path, "unlink", lambda *arguments, **options: None)
        break_download(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            data.load_cifar10(root)
    monkeypatch.setattr(cifar10, "download_url", download_url)
    (left,) = root.iterdir()
    (tmp_path / "precious").write_bytes(b"precious")
    if linked:
        left.unlink()
        left.symlink_to(tmp_path / "precious")
    serve(archive())
    assert len(data.load_cifar10(root)[0].labels) == 100
    assert names(root) == ["cifar-10-batches-py", CIFAR10.filename]
    assert not (root / CIFAR10.filename).is_symlink()
    assert (tmp_path / "precious").read_bytes() == b"precious"


@pytest.mark.parametrize("method", ["mkdir", "touch"])
def test_a_folder_that_cannot_be_written_to_is_refused_before_the_network_is_asked(offline, monkeypatch, method):
    monkeypatch.setattr(Path, method, raises(PermissionError(13, "Permission denied", str(offline))))
    assert f"({offline}: Permission denied)" in refusal(offline)


def test_a_folder_to_extract_to_that_cannot_be_written_to_is_refused(archive, monkeypatch):
    root = archive()
    monkeypatch.setattr(Path, "mkdir", raises(OSError(30, "Read-only file system", str(root))))
    assert f"({root}: Read-only file system)" in refusal(root)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert "File exists" in refusal(tmp_path / "file")
