"""Picture files of any size and kind, from strangers too, made into what the network takes."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from s10_resnet.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # no other of Pillow's many readers is let near a file
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
SIZE = 32


class PictureError(InputError):
    """A file is no picture, or one that cannot be read."""


class Gallery(NamedTuple):
    """The pictures that could be read, and what was wrong with the others.

    Attributes:
        images: uint8 ``[N, 32, 32, 3]``.
        places: Which of the files each is, int64 ``[N]``.
        problems: For each of the others a line that names it, by its place among the files.
    """

    images: np.ndarray
    places: np.ndarray
    problems: dict[int, str]


def read(path: Path, size: int = SIZE) -> np.ndarray:
    """A picture as uint8 ``[size, size, 3]``: its middle square, scaled by antialiased bicubic interpolation.

    The orientation that a camera noted is heeded, grey becomes colour, what is transparent is laid on white, and of an
    animation the first frame is taken. An RGB picture of ``size`` x ``size`` comes back as it is.

    Raises:
        PictureError: If the file is not a PNG, JPEG, WebP, GIF or BMP, is damaged, or holds more than some 178 million
            pixels, which is how archives of death look.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as picture:
            picture.draft("RGB", (4 * size, 4 * size))  # a large JPEG need not be decoded to its last pixel
            upright = ImageOps.exif_transpose(picture)
            return np.array(ImageOps.fit(_on_white(upright), (size, size), Image.Resampling.BICUBIC))
    except MemoryError:
        raise
    except FileNotFoundError:
        raise PictureError(f"{path}: must be a picture, and there is no such file") from None
    except Image.UnidentifiedImageError:
        raise PictureError(f"{path}: must be a picture, one of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise PictureError(f"{path}: must be a picture of at most {2 * Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except OSError as error:
        raise PictureError(f"{path}: cannot be read ({error.strerror or _line(error)})") from None
    except Exception as error:  # a damaged file may trip a reader over anything
        raise PictureError(f"{path}: cannot be read as a picture ({_line(error)})") from None


def read_all(paths: Iterable[Path]) -> Gallery:
    """All pictures that can be read; the others are named, and stop nobody."""
    images: dict[int, np.ndarray] = {}
    problems: dict[int, str] = {}
    for place, path in enumerate(paths):
        try:
            images[place] = read(path)
        except PictureError as error:
            problems[place] = str(error)
    return Gallery(
        np.array([*images.values()], np.uint8).reshape(-1, SIZE, SIZE, 3), np.array([*images], int), problems
    )


def find(given: Iterable[Path]) -> list[Path]:
    """The files that a command line means.

    Args:
        given: Files, which are taken whatever they are called; folders, for the pictures below them; or patterns that
            the shell has left alone, such as ``pets/**/*.jpg``.

    Raises:
        InputError: If one of them stands for nothing.
    """
    return [path for one in given for path in _meant(one)]


def labelled(folder: Path, classes: Sequence[str]) -> tuple[list[Path], list[int]]:
    """The pictures below a folder that holds a folder for each class, and their labels.

    Raises:
        InputError: If it is not such a folder, holds a folder that is named as no class, or no pictures.
    """
    names = ", ".join(classes)
    if not folder.is_dir():
        raise InputError(f"--images {folder}: must be a folder that holds folders named {names}")
    paths, labels = [], []
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if inner.name not in classes:
            raise InputError(f"--images {folder}: must hold folders named {names}; {inner.name} is none of these")
        found = list(_below(inner))
        paths += found
        labels += [classes.index(inner.name)] * len(found)
    if not paths:
        raise InputError(f"--images {folder}: must hold pictures ({' '.join(SUFFIXES)}) in folders named {names}")
    return paths, labels


def _meant(given: Path) -> list[Path]:
    try:
        if given.is_dir():
            found = list(_below(given))
        elif given.exists():
            found = [given]
        else:
            matches = [Path(match) for match in sorted(glob.glob(str(given), recursive=True))]  # noqa: PTH207
            found = [path for match in matches for path in (_below(match) if match.is_dir() else [match])]
    except OSError:  # longer than the system's names, say
        found = []
    if not found:
        raise InputError(f"IMAGE {given}: must be a picture, a folder of pictures, or a pattern that fits some")
    return found


def _below(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file())


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith(("I", "F")):  # 16 bits a pixel, which Pillow would cut off at 255
        picture = Image.fromarray((np.asarray(picture, np.float64) / 257).clip(0, 255).round().astype(np.uint8))
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
