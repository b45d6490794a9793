"""CIFAR-10 from its official files: what was checked is what is used, and nothing in a file is run."""

from __future__ import annotations

import hashlib
import http.client
import io
import pickle
import shutil
import ssl
import tarfile
import urllib.error
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import download_url

from s10_resnet.errors import DownloadError, InputError

CLASSES = 10
ARRAY_NAMES = ("numpy.ndarray", "numpy.dtype", "numpy.core.multiarray._reconstruct")  # all that the files name
NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)

Part = tuple[np.ndarray, np.ndarray, tuple[str, ...]]  # uint8 [N, 32, 32, 3], int64 [N], names of the classes


def read(root: Path) -> tuple[Part, Part]:
    """The 50,000 training and 10,000 test images, which are downloaded once if ``root`` does not hold them.

    Args:
        root: Folder that holds ``cifar-10-batches-py/``, which is only read, or its archive, or gets them.

    Raises:
        DownloadError: If the images are not there and cannot be fetched.
        InputError: If a file is missing, cut short or altered, and nothing is unpickled or extracted then; or if the
            folder cannot be read or written to.
    """
    files = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    try:
        if not (root / CIFAR10.base_folder).is_dir():
            _unpack(root)
        contents = {name: _read(root, f"{CIFAR10.base_folder}/{name}", md5) for name, md5 in files}
    except OSError as error:
        raise InputError(
            f"--data-dir {root}: must be a folder that holds CIFAR-10 or can take it "
            f"({error.filename or root}: {error.strerror or error})"
        ) from error
    # A file is let go of once it is parsed: together with the images they would double the memory.
    parsed = {name: _parse(root, name, contents.pop(name)) for name, _ in files}
    parts = []
    for batches in (CIFAR10.train_list, CIFAR10.test_list):
        images, labels = zip(*(parsed[name] for name, _ in batches), strict=True)
        parts.append((np.concatenate(images), np.concatenate(labels), parsed[CIFAR10.meta["filename"]]))
    return tuple(parts)


def _read(root: Path, name: str, md5: str) -> bytes:
    """An official file, read once: what was checked is what is used."""
    path = root / name
    content = path.read_bytes() if path.is_file() else None
    if content is None or hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        state = "is missing" if content is None else "is not the official file"
        raise InputError(
            f"--data-dir {root}: {name} {state} (MD5 must be {md5}). "
            f"Remove {root / Path(name).parts[0]} to have CIFAR-10 downloaded again."
        )
    return content


class _Recorded:
    """Stands in for numpy's types: keeps what a pickle says of them."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments

    def __setstate__(self, state: tuple):
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Calls nothing that a pickle names, not even numpy: its types take a made-up state for memory addresses."""

    def find_class(self, module: str, name: str) -> type:
        if f"{module}.{name}".replace("._core.", ".core.") not in ARRAY_NAMES:  # numpy 2 writes _core
            raise pickle.UnpicklingError
        return _Recorded


def _parse(root: Path, name: str, content: bytes) -> tuple:
    """What a file holds: the names of the classes, or images, uint8 ``[N, 32, 32, 3]``, and labels, int64 ``[N]``."""
    convert = _class_names if name == CIFAR10.meta["filename"] else _images_and_labels
    try:
        return convert(_Unpickler(io.BytesIO(content), encoding="latin1").load())
    except Exception as error:  # a made-up pickle can fail in any way
        raise InputError(
            f"--data-dir {root}: {CIFAR10.base_folder}/{name} has the right MD5 but not the official form "
            "(uint8 pixels [N, 3072] with N labels in 0..9, or the names of the ten classes)"
        ) from error


def _images_and_labels(batch: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    labels = batch["labels"]
    _, shape, dtype, by_columns, raw = batch["data"].state
    in_range = all(type(label) is int and 0 <= label < CLASSES for label in labels)
    if dtype.arguments[0] != "u1" or by_columns or shape != (len(labels), 3072) or not in_range:
        raise ValueError
    pixels = np.frombuffer(raw.encode("latin1") if isinstance(raw, str) else raw, np.uint8)
    images = pixels.reshape(len(labels), 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(labels, np.int64)


def _class_names(meta: dict[str, Any]) -> tuple[str, ...]:
    names = meta[CIFAR10.meta["key"]]
    if type(names) is not list or len(names) != CLASSES or not all(type(name) is str for name in names):
        raise ValueError
    return tuple(names)


def _unpack(root: Path) -> None:
    """Makes the folder of the images from its archive, in one step."""
    if not (root / CIFAR10.filename).is_file():
        _download(root)
    content = _read(root, CIFAR10.filename, CIFAR10.tgz_md5)
    temporary = root / f".{CIFAR10.base_folder}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        temporary.mkdir()
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            archive.extractall(temporary, filter=_files_and_folders)
        (temporary / CIFAR10.base_folder).rename(root / CIFAR10.base_folder)
    except Exception as error:  # a made-up archive can fail in any way
        if isinstance(error, OSError) and error.errno:
            raise
        raise InputError(f"--data-dir {root}: {CIFAR10.filename} cannot be unpacked ({error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _files_and_folders(member: tarfile.TarInfo, destination: str) -> tarfile.TarInfo:
    """The filter ``data``, which lets links inside the folder pass and makes absolute paths relative."""
    if member.name.startswith("/") or not (member.isreg() or member.isdir()):
        raise tarfile.FilterError(f"{member.name!r} is no file or folder inside it")
    return tarfile.data_filter(member, destination)


def _download(root: Path) -> None:
    part = root / f".{CIFAR10.filename}.part"
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)  # of a process that was killed
        part.touch()  # what cannot be written to is found out before the network is asked
        download_url(CIFAR10.url, root, part.name, CIFAR10.tgz_md5)
        part.replace(root / CIFAR10.filename)
    except (*NETWORK_ERRORS, RuntimeError) as error:  # RuntimeError: not the MD5
        raise DownloadError(
            f"--data-dir {root}: CIFAR-10 is not there ({CIFAR10.base_folder}/ is missing) and the download failed "
            f"({error}). Put {CIFAR10.filename} (MD5 {CIFAR10.tgz_md5}) into that folder, name a folder that holds "
            f"{CIFAR10.base_folder}/ with --data-dir, or train on the built-in stand-in with --dataset synthetic."
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()
