import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from s10_resnet.data.synthetic import CLASSES
from s10_resnet.errors import InputError
from s10_resnet.evaluation import images as pictures
from s10_resnet.evaluation.images import PictureError


@pytest.fixture
def image(noise_images):
    return noise_images[0]


def saved(path, content, **options):
    picture = content if isinstance(content, Image.Image) else Image.fromarray(content)
    picture.save(path, **options)
    return path


def refusal(path):
    with pytest.raises(PictureError) as caught:
        pictures.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.webp", "a.PNG", "a.jpg", "without-a-suffix"])
def test_a_picture_of_the_right_size_comes_back_as_it_is(tmp_path, image, name):
    kind = {"webp": "WEBP", "bmp": "BMP"}.get(name.split(".")[-1], "PNG")  # whatever it is called
    path = saved(tmp_path / name, image, format=kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(pictures.read(path), image)


def test_a_jpeg(tmp_path):
    smooth = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8)[:, :, None] * np.array([1, 2, 3], np.uint8)
    read = pictures.read(saved(tmp_path / "a.jpg", smooth, quality=95))
    assert np.abs(read.astype(int) - smooth).max() < 12


def test_the_middle_square_is_taken(tmp_path):
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 200
    assert (pictures.read(saved(tmp_path / "wide.png", wide)) == 200).all()
    assert (pictures.read(saved(tmp_path / "high.png", wide.transpose(1, 0, 2))) == 200).all()


def test_it_is_scaled_down_without_aliases(tmp_path):
    """Stripes of one pixel: taking every so-manyth pixel would give black or white, not the grey between."""
    stripes = np.zeros((320, 320, 3), np.uint8)
    stripes[:, ::2] = 255
    read = pictures.read(saved(tmp_path / "stripes.png", stripes))
    assert np.abs(read[4:-4, 4:-4].astype(int) - 127).max() <= 4


def test_large_blocks_become_their_pixels(tmp_path, image):
    large = image.repeat(8, axis=0).repeat(8, axis=1)
    read = pictures.read(saved(tmp_path / "large.png", large)).astype(int)
    # Bicubic weights reach into the neighbours by half a block: the picture is the same but for its contrast.
    assert np.corrcoef(read.ravel(), image.ravel())[0, 1] > 0.97


def test_one_pixel(tmp_path):
    read = pictures.read(saved(tmp_path / "a.png", np.full((1, 1, 3), 77, np.uint8)))
    assert read.shape == (32, 32, 3)
    assert (read == 77).all()


def test_a_line_of_pixels(tmp_path):
    for shape in ((1, 20_000, 3), (20_000, 1, 3)):
        assert (pictures.read(saved(tmp_path / "a.png", np.full(shape, 9, np.uint8))) == 9).all()


def test_twenty_megapixels(tmp_path):
    flat = Image.new("RGB", (5000, 4000), (10, 200, 30))
    for name in ("a.png", "a.jpg"):
        read = pictures.read(saved(tmp_path / name, flat)).astype(int)
        assert np.abs(read - (10, 200, 30)).max() <= 2


def test_grey(tmp_path, image):
    grey = image[:, :, 0]
    assert np.array_equal(pictures.read(saved(tmp_path / "a.png", grey)), grey[:, :, None].repeat(3, axis=2))
    bits = Image.fromarray(grey > 127)
    assert np.array_equal(pictures.read(saved(tmp_path / "b.png", bits))[:, :, 1], 255 * (grey > 127))


def test_sixteen_bits(tmp_path, image):
    grey = image[:, :, 0]
    path = saved(tmp_path / "a.png", Image.fromarray(grey.astype(np.uint16) * 257))
    with Image.open(path) as picture:
        assert picture.mode.startswith("I")
    assert np.array_equal(pictures.read(path)[:, :, 2], grey)


def test_what_is_transparent_is_white(tmp_path, image):
    opaque = np.zeros((32, 32, 1), np.uint8)
    opaque[:16] = 255
    opaque[31] = 128
    read = pictures.read(saved(tmp_path / "a.png", np.concatenate([image, opaque], axis=2)))
    assert np.array_equal(read[:16], image[:16])
    assert (read[16:31] == 255).all()
    assert np.abs(read[31].astype(int) - (image[31].astype(int) + 255) / 2).max() <= 2
    grey = Image.fromarray(image[:, :, 0])
    grey.putalpha(Image.fromarray(opaque[:, :, 0]))
    assert (pictures.read(saved(tmp_path / "b.png", grey))[16:31] == 255).all()


def test_a_palette_with_a_transparent_colour(tmp_path):
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([0, 0, 0, 250, 0, 0, 0, 0, 250])
    palette.paste(2, (0, 0, 32, 16))
    read = pictures.read(saved(tmp_path / "a.gif", palette, transparency=1))
    assert (read[:16] == (0, 0, 250)).all()
    assert (read[16:] == 255).all()


def test_the_orientation_of_the_camera(tmp_path, image):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned = pictures.read(saved(tmp_path / "a.png", image, exif=exif))
    assert np.array_equal(turned, np.rot90(image, -1))


@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_the_first_frame_of_an_animation(tmp_path, kind):
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "lime", "blue")]
    path = saved(tmp_path / f"a.{kind}", frames[0], save_all=True, append_images=frames[1:])
    with Image.open(path) as picture:
        assert picture.n_frames == 3
    assert np.abs(pictures.read(path).astype(int) - (255, 0, 0)).max() <= 3


def test_colours_of_print(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.new("CMYK", (40, 40), (0, 255, 255, 0)))
    assert np.abs(pictures.read(path).astype(int) - (255, 0, 0)).max() <= 4


def test_a_larger_size_can_be_asked_for(tmp_path):
    assert pictures.read(saved(tmp_path / "a.jpg", Image.new("RGB", (900, 700))), 256).shape == (256, 256, 3)


def test_files_that_are_no_pictures(tmp_path):
    path = tmp_path / "a.png"
    assert refusal(path) == "must be a picture, and there is no such file"
    for content in (b"", b"text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", os.urandom(1000)):
        path.write_bytes(content)
        assert refusal(path)
    assert "Is a directory" in refusal(tmp_path)


def test_formats_of_other_programs_are_not_let_near_a_reader(tmp_path, image):
    for kind in ("TIFF", "PPM", "ICO", "TGA", "PDF"):
        path = tmp_path / "a.png"
        Image.fromarray(image).save(path, format=kind)
        assert refusal(path) == "must be a picture, one of PNG, JPEG, WEBP, GIF, BMP"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_damaged_pictures(tmp_path, image, kind):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind)
    content = buffer.getvalue()
    draws, path, told = np.random.default_rng(0), tmp_path / "a.png", []
    for _ in range(60):
        damaged = bytearray(content[: draws.integers(1, len(content))] if draws.random() < 0.5 else content)
        for place in draws.integers(0, len(damaged), 3):
            damaged[place] ^= draws.integers(1, 256)
        path.write_bytes(damaged)
        try:
            assert pictures.read(path).shape == (32, 32, 3)
        except PictureError as error:
            told.append(str(error))
    assert told
    assert not any("\n" in line for line in told)


def bomb(width, height):
    """A PNG that claims to be large."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def test_a_picture_too_large_to_be_one(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(bomb(30_000, 30_000))
    assert refusal(path) == "must be a picture of at most 178,956,970 pixels"
    path.write_bytes(bomb(10_000, 10_000))  # Pillow only warns of these; this one is short of its pixels
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert "cannot be read" in refusal(path)
    assert not told


def test_the_others_are_read(tmp_path, noise_images):
    paths = [saved(tmp_path / f"{i}.png", image) for i, image in enumerate(noise_images[:4])]
    paths[1].write_text("text")
    paths[3].unlink()
    gallery = pictures.read_all(paths)
    assert np.array_equal(gallery.images, noise_images[[0, 2]])
    assert gallery.places.tolist() == [0, 2]
    assert [*gallery.problems] == [1, 3]
    assert all(line.startswith(f"{paths[place]}: ") for place, line in gallery.problems.items())
    nothing = pictures.read_all([paths[1]])
    assert (nothing.images.shape, len(nothing.places), [*nothing.problems]) == ((0, 32, 32, 3), 0, [0])


def test_files_folders_and_patterns_are_found(tmp_path, monkeypatch):
    for name in ("b.png", "a.JPG", "note.txt", "deep/er/c.gif", "odd[1].png", "empty/note.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def found(*given):
        return [str(path.relative_to(tmp_path)) for path in pictures.find([tmp_path / one for one in given])]

    assert found("note.txt") == ["note.txt"]  # whoever names a file means it
    assert found("") == ["a.JPG", "b.png", "deep/er/c.gif", "odd[1].png"]
    assert found("*.png", "a.JPG") == ["b.png", "odd[1].png", "a.JPG"]
    assert found("**/*.gif") == ["deep/er/c.gif"]
    assert found("d*") == ["deep/er/c.gif"]
    assert found("odd[1].png") == ["odd[1].png"]
    for nothing in ("missing.png", "*.bmp", "empty", "a" * 5000):
        with pytest.raises(InputError, match=r"^IMAGE .*: must be a picture, a folder of pictures, or a pattern"):
            found("a.JPG", nothing)


def test_a_folder_for_each_class(tmp_path):
    for name in ("ring/b.png", "ring/a.jpg", "circle/deep/c.png", ".cache/x.png", "circle/note.txt", "loose.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    paths, labels = pictures.labelled(tmp_path, CLASSES)
    assert [str(path.relative_to(tmp_path)) for path in paths] == ["circle/deep/c.png", "ring/a.jpg", "ring/b.png"]
    assert labels == [CLASSES.index(name) for name in ("circle", "ring", "ring")]


def test_folders_that_are_not_labelled(tmp_path):
    def told(folder):
        with pytest.raises(InputError) as caught:
            pictures.labelled(folder, ("cat", "dog"))
        return str(caught.value).removeprefix(f"--images {folder}: ")

    assert told(tmp_path / "missing") == "must be a folder that holds folders named cat, dog"
    assert told(tmp_path).startswith("must hold pictures (.png .jpg ")
    (tmp_path / "cat").mkdir()
    assert told(tmp_path).startswith("must hold pictures")
    (tmp_path / "zebra").mkdir()
    assert told(tmp_path) == "must hold folders named cat, dog; zebra is none of these"
