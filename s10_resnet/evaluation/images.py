"""Image files of any size and format: finding them, and reading them into the input of the network."""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from s10_resnet.config import printable
from s10_resnet.errors import InputError
from s10_resnet.utils.console import logger, progress_bar

IMAGE_SIZE = 32
MAX_PIXELS = 50_000_000  # far more than 32 x 32 needs, and more than most cameras have; decoded, some 200 MB
NUM_SHOWN = 5  # files that a warning names
# Pillow runs another program, Ghostscript, to read EPS; of the others it reads the header only.
UNREADABLE_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


def image_formats() -> tuple[str, ...]:
    """Returns Pillow's names of the formats that are read."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in UNREADABLE_FORMATS)


def read_image(path: str | Path, size: int = IMAGE_SIZE) -> np.ndarray:
    """Reads an image file, whatever its name, as `to_array` says; of an animation the first frame.

    Returns:
        uint8 ``[size, size, 3]``.

    Raises:
        InputError: If the path is not that of a regular file, or the file is in no format that Pillow reads, is
            damaged, or has more than `MAX_PIXELS` pixels. Damaged metadata of a PNG or JPEG file is ignored.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise InputError("it must be a file, not a folder, pipe or device, and exist")
        with suppress(Exception):  # damaged metadata makes Pillow raise anything
            return _decode(path, size)
        return _decode(io.BytesIO(_strip_metadata(path)), size)
    except UnidentifiedImageError:
        reason = "it is in no known format"
    except Exception as error:  # and so do damaged pixels
        reason = printable(str(error) or repr(error), 200)
    raise InputError(f"{printable(str(path), 1000)}: cannot be read as an image ({reason})")


def to_array(image: Image.Image, size: int = IMAGE_SIZE) -> np.ndarray:
    """Converts an image to uint8 ``[size, size, 3]``: its middle square, resized by antialiased bicubic interpolation.

    The EXIF orientation is applied, gray becomes RGB, 16 bits become 8, and transparent pixels are drawn on white. An
    RGB image of ``size`` x ``size`` pixels is returned unchanged.

    Raises:
        InputError: If it has more than `MAX_PIXELS` pixels.
    """
    if image.width * image.height > MAX_PIXELS:
        raise InputError(f"it must have at most {MAX_PIXELS / 1e6:.0f} megapixels")
    image.load()  # the orientation may stand behind the pixels
    with suppress(Exception):  # damaged metadata is no reason to refuse the pixels
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # gray of 16 bits, which Pillow would clip at 255
        pixels, transparent = np.asarray(image, np.float32), image.info.get("transparency")
        image = Image.fromarray((pixels / 257).clip(0, 255).round().astype(np.uint8))
        if isinstance(transparent, int):
            image.putalpha(Image.fromarray(np.where(pixels == transparent, 0, 255).astype(np.uint8)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC))


def read_images(paths: Sequence[Path], name: str) -> tuple[np.ndarray, dict[Path, str]]:
    """Reads all images that can be read (see `read_image`), and warns of the others.

    Returns:
        The images, uint8 ``[N, 32, 32, 3]``, and for each of the other files a message of one line.

    Raises:
        InputError: If none of the files can be read; ``name`` says how they were given.
    """
    images: list[np.ndarray] = []
    errors: dict[Path, str] = {}
    for path in progress_bar(paths, desc="reading", unit="image"):
        try:
            images.append(read_image(path))
        except InputError as error:
            errors[path] = str(error)
    if not images:
        raise InputError(f"{name}: none of the images can be read, the first: {errors[paths[0]]}")
    for message in errors.values():
        logger.warning(message)
    return np.stack(images), errors


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Finds the image files that a command line means.

    A file that is named is taken whatever its name. In folders, and by patterns such as ``pets/**/*.jpg`` that the
    shell did not expand, files are found by the suffixes of image formats; hidden ones are left out. Below folders
    symbolic links are followed. No file is taken twice. What is left out is named in one warning.

    Raises:
        InputError: If one of the paths stands for no image.
    """
    files: list[Path] = []
    left_out: list[Path] = []
    for path in paths:
        found: list[Path] = []
        with suppress(OSError, ValueError):  # of names that are too long, and patterns that are not valid
            found = _expand(path, left_out)
        if not found:
            raise InputError(f"IMAGE {path}: must be an image file, a folder of images, or a pattern that matches some")
        files += found
    return _each_once(files, left_out)


def find_labeled_images(folder: Path, classes: Sequence[str]) -> tuple[list[Path], list[int]]:
    """Finds the image files below a folder that holds a folder per class: see `find_images`.

    Returns:
        Paths and labels.

    Raises:
        InputError: If there is no such folder, it holds another folder than those of classes, or no images.
    """
    names = ", ".join(classes)
    if not folder.is_dir():
        raise InputError(f"--images {folder}: must be a folder that holds folders named {names}")
    files: list[Path] = []
    left_out: list[Path] = []
    for inner in sorted(folder.iterdir()):
        if inner.name.startswith(".") or not inner.is_dir():
            left_out.append(inner)
        elif inner.name not in classes:
            raise InputError(f"--images {folder}: must hold folders named {names}; {inner.name} is none of these")
        else:
            files += _walk(inner, left_out)
    if not files:
        raise InputError(f"--images {folder}: must hold images (.png, .jpg, ...) in folders named {names}")
    files = _each_once(files, left_out)
    return files, [classes.index(path.relative_to(folder).parts[0]) for path in files]


def _expand(path: Path, left_out: list[Path]) -> list[Path]:
    """Returns the image files that a file, a folder or a pattern means."""
    if path.is_dir():
        return _walk(path, left_out)
    if path.exists():
        return [path]
    base = Path(path.anchor)
    files: list[Path] = []
    for match in sorted(base.glob(str(path.relative_to(base)))):  # as in a shell, ** follows no links
        if not any(part.startswith(".") and part not in path.parts for part in match.parts):
            files += _walk(match, left_out)
    return list(dict.fromkeys(files))  # ** matches a folder and those in it


def _walk(root: Path, left_out: list[Path]) -> list[Path]:
    """Returns the image files below a folder by their suffixes, in the order of sorted paths, or the file itself."""
    formats = image_formats()
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in formats}
    files, visited, stack = [], set(), [root]
    while stack:
        path = stack.pop()
        real = os.path.realpath(path)
        if path != root and path.name.startswith("."):
            left_out.append(path)
        elif path.is_dir() and real not in visited:  # a link to a folder above would be followed without end
            visited.add(real)
            try:
                stack += sorted(path.iterdir(), reverse=True)
            except OSError:
                left_out.append(path)
        elif path.suffix.lower() in suffixes and path.is_file():
            files.append(path)
        else:
            left_out.append(path)
    return files


def _each_once(files: Iterable[Path], left_out: list[Path]) -> list[Path]:
    """Returns each file once, and warns of all that is left out."""
    unique: dict[str, Path] = {}
    for path in files:
        if unique.setdefault(os.path.realpath(path), path) is not path:
            left_out.append(path)
    names = [printable(str(path), 1000) for path in dict.fromkeys(left_out)]
    if names:
        more = f" and {len(names) - NUM_SHOWN:,} more" if len(names) > NUM_SHOWN else ""
        logger.warning(f"left out (hidden, not an image file, or given twice): {', '.join(names[:NUM_SHOWN])}{more}")
    return [*unique.values()]


def _decode(file: Path | io.BytesIO, size: int) -> np.ndarray:
    with warnings.catch_warnings(action="ignore"), Image.open(file, formats=image_formats()) as image:
        if image.width * image.height <= MAX_PIXELS:
            image.draft("RGB", (4 * size, 4 * size))  # a large JPEG is decoded at a lower resolution
        return to_array(image, size)


def _strip_metadata(path: Path) -> bytes:
    """Returns the content of a PNG or JPEG file without metadata, and that of any other file as it is."""
    with path.open("rb") as file:
        content = file.read(8 * MAX_PIXELS)  # 64 bits a pixel, not compressed
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        parts, position = [content[:8]], 8
        while position + 12 <= len(content):
            length, kind = struct.unpack_from(">I4s", content, position)
            if kind[:1].isupper() or kind == b"tRNS":  # critical chunks and transparency
                parts.append(content[position : position + 12 + length])
            position += 12 + length
        return b"".join(parts)
    if content.startswith(b"\xff\xd8"):
        parts, position = [content[:2]], 2
        while position + 4 <= len(content) and content[position + 1] != 0xDA:  # up to the first scan
            marker, length = struct.unpack_from(">xBH", content, position)
            is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
            if not is_metadata or (marker == 0xEE and length >= 14):  # Adobe's tells the color space
                parts.append(content[position : position + 2 + length])
            position += 2 + length
        return b"".join([*parts, content[position:]])
    return content
