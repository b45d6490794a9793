"""CIFAR-10 by way of torchvision, with errors that name the file at fault."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from urllib.error import URLError

import numpy as np
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, download_url

from s10_resnet.errors import DownloadError, InputError

# Beside the network's own errors: RuntimeError for a wrong MD5, ValueError for a URL or a proxy that cannot be parsed.
DOWNLOAD_ERRORS = (URLError, HTTPException, ConnectionError, TimeoutError, SSLError, RuntimeError, ValueError)

Arrays = tuple[np.ndarray, np.ndarray, tuple[str, ...]]  # uint8 [N, 32, 32, 3], int64 [N], class names


def read_cifar10(root: Path) -> tuple[Arrays, Arrays]:
    """Reads the 50,000 training and 10,000 test images; downloads them first if they are missing.

    Args:
        root: Folder that holds ``cifar-10-batches-py/`` or its archive, or receives them; not written to if it holds
            the images.

    Returns:
        Images (uint8 ``[N, 32, 32, 3]``), labels (int64 ``[N]``) and class names of the training and the test split.

    Raises:
        DownloadError: If the images are missing and the download failed.
        InputError: If a file is missing or does not have its MD5 checksum, or the folder cannot be read or written.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torchvision may print its progress to stdout
            if not (root / CIFAR10.base_folder).is_dir():
                _prepare(root)
            train, test = (CIFAR10(root, train=is_train) for is_train in (True, False))
    except OSError as error:
        raise InputError(
            f"--data-dir {root}: must be a folder that holds CIFAR-10 or can be written to "
            f"({error.filename or root}: {error.strerror or error})"
        ) from error
    except RuntimeError as error:  # a wrong MD5; torchvision does not name the file
        meta = (CIFAR10.meta["filename"], CIFAR10.meta["md5"])
        for name, md5 in (*CIFAR10.train_list, *CIFAR10.test_list, meta):
            _check(root, f"{CIFAR10.base_folder}/{name}", md5)
        raise InputError(f"--data-dir {root}: {error}") from error
    return _to_arrays(train), _to_arrays(test)


def _to_arrays(dataset: CIFAR10) -> Arrays:
    # torchvision's array is a view of channels-first memory.
    return np.ascontiguousarray(dataset.data), np.array(dataset.targets, np.int64), tuple(dataset.classes)


def _check(root: Path, name: str, md5: str) -> None:
    """Raises an `InputError` unless the file is there and has this MD5."""
    if not check_integrity(root / name, md5):
        state = "is damaged" if (root / name).is_file() else "is missing"
        remedy = f"Remove {root / Path(name).parts[0]} to have CIFAR-10 downloaded again."
        raise InputError(f"--data-dir {root}: {name} {state} (expected MD5 {md5}). {remedy}")


def _prepare(root: Path) -> None:
    """Unpacks CIFAR-10 into ``root``, downloading it first if its archive is not there."""
    if root.absolute().name == CIFAR10.base_folder:
        raise InputError(f"--data-dir {root}: must be the folder that holds {CIFAR10.base_folder}/")
    archive = root / CIFAR10.filename
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".cifar-10-", dir=root) as temporary:  # removed on any error
        if not archive.is_file():
            _download(root, temporary)
            Path(temporary, CIFAR10.filename).replace(archive)
        _check(root, CIFAR10.filename, CIFAR10.tgz_md5)
        # Not torchvision's extract_archive, which has no filter before 0.29.2.
        shutil.unpack_archive(archive, temporary, filter="data")
        Path(temporary, CIFAR10.base_folder).rename(root / CIFAR10.base_folder)


def _download(root: Path, folder: str) -> None:
    try:
        download_url(CIFAR10.url, folder, CIFAR10.filename, CIFAR10.tgz_md5)
    except DOWNLOAD_ERRORS as error:
        raise DownloadError(
            f"--data-dir {root}: {CIFAR10.base_folder}/ is missing and the download of CIFAR-10 failed ({error}). Put "
            f"{CIFAR10.filename} (MD5 {CIFAR10.tgz_md5}) into that folder, pass a folder that holds "
            f"{CIFAR10.base_folder}/ with --data-dir, or use the synthetic data set with --dataset synthetic."
        ) from error
