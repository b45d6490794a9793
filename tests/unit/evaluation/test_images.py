import io
import os
import re
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from s10_resnet.data.synthetic import CLASSES
from s10_resnet.errors import InputError
from s10_resnet.evaluation.images import find_images, find_labeled_images, read_image, read_images


@pytest.fixture
def pixels(noise_images):
    return noise_images[0]


def saved(path, content, **options):
    image = content if isinstance(content, Image.Image) else Image.fromarray(content)
    image.save(path, **options)
    return path


def refusal(path):
    with pytest.raises(InputError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    reason = re.fullmatch(r"cannot be read as an image \((.*)\)", message.removeprefix(f"{path}: "))
    return reason[1]


def chunk(kind, content, crc=None):
    """A part of a PNG file."""
    crc = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(width, height, depth, color, pixels, before=b"", after=b""):
    """A PNG file of rows of pixels, with chunks before and after them."""
    rows = b"".join(b"\0" + row for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    body = before + chunk(b"IDAT", zlib.compress(rows)) + after
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tif", "ppm", "tga", "ico", "jp2", "qoi", "sgi", "pcx"])
def test_an_image_of_the_right_size_is_unchanged(tmp_path, pixels, suffix):
    options = {"jp2": {"irreversible": False}, "webp": {"lossless": True}}.get(suffix, {})
    path = saved(tmp_path / f"a.{suffix}", pixels, **options)
    assert np.array_equal(read_image(path), pixels)
    assert find_images([tmp_path]) == [path]
    assert np.array_equal(read_image(str(path.rename(tmp_path / "a.jpg"))), pixels)  # whatever its name


def test_eps_is_not_read(tmp_path, pixels, monkeypatch):
    monkeypatch.setattr("subprocess.check_call", None)  # by which Ghostscript would be run
    assert refusal(saved(tmp_path / "a.png", pixels, format="EPS")) == "it is in no known format"


def test_the_middle_square_is_taken(tmp_path):
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 200
    assert (read_image(saved(tmp_path / "wide.png", wide)) == 200).all()
    assert (read_image(saved(tmp_path / "high.png", wide.transpose(1, 0, 2))) == 200).all()


def test_resizing_is_antialiased(tmp_path):
    """Stripes of one pixel: nearest neighbors would be black or white, not gray."""
    stripes = np.zeros((320, 320, 3), np.uint8)
    stripes[:, ::2] = 255
    read = read_image(saved(tmp_path / "stripes.png", stripes))
    assert np.abs(read[4:-4, 4:-4].astype(int) - 127).max() <= 4


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 20_000, 3)])
def test_extreme_shapes(tmp_path, shape):
    assert (read_image(saved(tmp_path / "a.png", np.full(shape, 77, np.uint8))) == np.full((32, 32, 3), 77)).all()


def test_a_large_jpeg(tmp_path):
    read = read_image(saved(tmp_path / "a.jpg", Image.new("RGB", (5000, 4000), (10, 200, 30)))).astype(int)
    assert np.abs(read - (10, 200, 30)).max() <= 2
    assert read_image(tmp_path / "a.jpg", 256).shape == (256, 256, 3)


def test_gray(tmp_path, pixels):
    gray = pixels[:, :, 0]
    assert np.array_equal(read_image(saved(tmp_path / "a.png", gray)), gray[:, :, None].repeat(3, axis=2))
    deep = saved(tmp_path / "b.png", Image.fromarray(gray.astype(np.uint16) * 257))
    with Image.open(deep) as image:
        assert image.mode.startswith("I")
    assert np.array_equal(read_image(deep)[:, :, 2], gray)


def test_transparent_pixels_are_white(tmp_path, pixels):
    alpha = np.zeros((32, 32, 1), np.uint8)
    alpha[:16] = 255
    alpha[31] = 128
    read = read_image(saved(tmp_path / "a.png", np.concatenate([pixels, alpha], axis=2)))
    assert np.array_equal(read[:16], pixels[:16])
    assert (read[16:31] == 255).all()
    assert np.abs(read[31].astype(int) - (pixels[31].astype(int) + 255) / 2).max() <= 2
    gray = Image.fromarray(pixels[:, :, 0])
    gray.putalpha(Image.fromarray(alpha[:, :, 0]))
    assert (read_image(saved(tmp_path / "b.png", gray))[16:31] == 255).all()


@pytest.mark.parametrize(
    ("depth", "color", "row", "transparent"),
    [
        (8, 0, bytes([100] * 16 + [5] * 16), struct.pack(">H", 5)),
        (16, 0, struct.pack(">32H", *[257 * 100] * 16, *[257 * 5] * 16), struct.pack(">H", 257 * 5)),
        (16, 2, struct.pack(">96H", *[257 * 100] * 48, *[257 * 5] * 48), struct.pack(">3H", *[257 * 5] * 3)),
        (8, 2, bytes([100] * 48 + [5] * 48), struct.pack(">3H", 5, 5, 5)),
    ],
)
def test_a_transparent_color_without_a_palette(tmp_path, depth, color, row, transparent):
    (tmp_path / "a.png").write_bytes(png(32, 32, depth, color, [row] * 32, chunk(b"tRNS", transparent)))
    read = read_image(tmp_path / "a.png")
    assert (read[:, :16] == 100).all()
    assert (read[:, 16:] == 255).all()


@pytest.mark.parametrize("orientation", range(10))
def test_the_exif_orientation(tmp_path, pixels, orientation):
    turned = {
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.png", "a.tif"):
        read = read_image(saved(tmp_path / name, pixels, exif=exif))
        assert np.array_equal(read, turned.get(orientation, pixels))


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"pHYs", b"eXIf", b"gAMA", b"acTL", b"fcTL"])
def test_broken_metadata_of_a_png(tmp_path, pixels, kind):
    path, rows = tmp_path / "a.png", [row.tobytes() for row in pixels]
    for content in (b"", b"\xff\xfe\0\1", bytes(range(200))):
        for crc in (None, 0):
            part = chunk(kind, content, crc)
            for extra in ({"before": part}, {"after": part}):
                path.write_bytes(png(32, 32, 8, 2, rows, **extra))
                assert np.array_equal(read_image(path), pixels)
    bomb = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(10**7)))
    path.write_bytes(png(32, 32, 8, 2, rows, bomb))
    assert np.array_equal(read_image(path), pixels)


@pytest.mark.parametrize("marker", [0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE])
def test_broken_metadata_of_a_jpeg(tmp_path, marker):
    path = saved(tmp_path / "a.jpg", Image.new("RGB", (40, 40), (10, 20, 200)))
    file = path.read_bytes()
    for content in (
        b"",
        b"Exif\0\0MM\0*\0\0\0\xff",
        b"MPF\0II*\0\xff\xff",
        b"ICC_PROFILE\0",
        b"Photoshop 3.0\x008BIM\xff\xff",
        b"Adobe",
    ):
        segment = struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
        path.write_bytes(file[:2] + segment + file[2:])
        assert np.abs(read_image(path).astype(int) - (10, 20, 200)).max() <= 2


def test_broken_exif_is_no_reason_to_refuse(tmp_path, pixels):
    for name, options in {"a.webp": {"lossless": True}, "a.png": {}}.items():
        path = saved(tmp_path / name, pixels, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\xff", **options)
        assert np.array_equal(read_image(path), pixels)


@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_the_first_frame_of_an_animation(tmp_path, kind):
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "lime", "blue")]
    path = saved(tmp_path / f"a.{kind}", frames[0], save_all=True, append_images=frames[1:])
    with Image.open(path) as image:
        assert image.n_frames == 3
    assert np.abs(read_image(path).astype(int) - (255, 0, 0)).max() <= 3


def test_files_that_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "missing.png"):
        assert refusal(path) == "it must be a file, not a folder, pipe or device, and exist"
    path = tmp_path / "a.png"
    for content in (b"", b"text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", os.urandom(1000)):
        path.write_bytes(content)
        assert refusal(path) == "it is in no known format"
    with pytest.raises(InputError, match=r"two\\nlines\\x1b\[2J\.png: cannot be read"):
        read_image(tmp_path / "two\nlines\x1b[2J.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
def test_damaged_images(tmp_path, pixels, kind):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    content = buffer.getvalue()
    rng, path, messages = np.random.default_rng(0), tmp_path / "a.png", []
    for _ in range(60):
        damaged = bytearray(content[: rng.integers(1, len(content))] if rng.random() < 0.5 else content)
        for position in rng.integers(0, len(damaged), 3):
            damaged[position] ^= rng.integers(1, 256)
        path.write_bytes(damaged)
        try:
            assert read_image(path).shape == (32, 32, 3)
        except InputError as error:
            messages.append(str(error))
    assert messages
    assert not any("\n" in line for line in messages)


@pytest.mark.parametrize("size", [(30_000, 30_000), (50_000, 1001)])
def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path, monkeypatch, size):
    monkeypatch.setattr(Image.Image, "load", None)
    (tmp_path / "a.png").write_bytes(png(*size, 8, 2, [b"\0" * 100]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert refusal(tmp_path / "a.png").startswith(
            ("it must have at most 50 megapixels", "Image size (900000000 pixels)")
        )
    assert not caught


def test_the_others_are_read(tmp_path, noise_images, capsys):
    paths = [saved(tmp_path / f"{i}.png", image) for i, image in enumerate(noise_images[:4])]
    paths[1].write_text("text")
    paths[3].unlink()
    read, errors = read_images(paths, "IMAGE")
    assert np.array_equal(read, noise_images[[0, 2]])
    assert [*errors] == [paths[1], paths[3]]
    assert capsys.readouterr().err == "".join(f"warning: {message}\n" for message in errors.values())
    with pytest.raises(
        InputError, match=r"^IMAGE: none of the images can be read, the first: .*1\.png: cannot be read"
    ):
        read_images([paths[1]], "IMAGE")


def make_files(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def found(tmp_path, capsys):
    """Finds images by paths relative to a folder, and what the warning names."""

    def find(*paths):
        result = [os.path.relpath(path, tmp_path) for path in find_images([tmp_path / path for path in paths])]
        err = capsys.readouterr().err
        prefix = "warning: left out (hidden, not an image file, or given twice): "
        assert err.startswith(prefix) or not err
        assert err.count("\n") <= 1
        return result, err.removeprefix(prefix).rstrip().replace(f"{tmp_path}/", "")

    return find


def test_files_folders_and_patterns(tmp_path, found):
    make_files(tmp_path, "b.png", "a.JPG", "note.txt", "deep/er/c.gif", "deep/t.tiff", "odd[1].png", "empty/note.txt")
    assert found("note.txt") == (["note.txt"], "")  # whoever names a file means it
    everything = ["a.JPG", "b.png", "deep/er/c.gif", "deep/t.tiff", "odd[1].png"]
    assert found("") == (everything, "empty/note.txt, note.txt")
    assert found("*.png", "a.JPG") == (["b.png", "odd[1].png", "a.JPG"], "")
    assert found("**/*.gif") == (["deep/er/c.gif"], "")
    assert found("**") == (everything, "empty/note.txt, note.txt")
    assert found("**/er") == (["deep/er/c.gif"], "")
    assert found("d*/**/*.*f*") == (["deep/er/c.gif", "deep/t.tiff"], "")
    assert found("d*") == (["deep/er/c.gif", "deep/t.tiff"], "")
    assert found("*.*") == (["a.JPG", "b.png", "odd[1].png"], "note.txt")
    assert found("odd[1].png") == (["odd[1].png"], "")
    for nothing in ("missing.png", "*.bmp", "empty", "**/*.bmp", "***", "a" * 5000):
        with pytest.raises(InputError, match=r"^IMAGE .*: must be an image file, a folder of images, or a pattern"):
            found("a.JPG", nothing)


def test_hidden_entries_are_left_out_at_any_depth(tmp_path, found):
    make_files(tmp_path, "a.png", ".b.png", "deep/.c.png", "deep/.d/e.png", "deep/f.png")
    expected = ["a.png", "deep/f.png"]
    assert found("") == (expected, ".b.png, deep/.c.png, deep/.d")
    assert found("**/*.png") == (expected, "")
    assert found("*")[0] == expected
    assert found(".b.png")[0] == [".b.png"]  # named, not found
    assert found("deep/.d")[0] == found("deep/.d/*")[0] == ["deep/.d/e.png"]


def test_each_file_once(tmp_path, found):
    make_files(tmp_path, "pets/a.png", "pets/deep/b.png")
    (tmp_path / "pets" / "deep" / "up").symlink_to(tmp_path / "pets")
    (tmp_path / "pets" / "deep" / "more").symlink_to(tmp_path / "pets" / "deep")
    (tmp_path / "pets" / "z.png").symlink_to("a.png")
    (tmp_path / "pets" / "none.png").symlink_to("none.png")
    expected = ["pets/a.png", "pets/deep/b.png"]
    assert found("pets") == (expected, "pets/deep/more, pets/deep/up, pets/none.png, pets/z.png")
    assert found("pets/**/*.png") == (expected, "pets/none.png, pets/z.png")
    assert found("pets/a.png", "pets/a.png", "pets/z.png") == (expected[:1], "pets/a.png, pets/z.png")
    (tmp_path / "link").symlink_to("pets/deep")
    assert found("link")[0] == ["link/b.png", "link/up/a.png"]  # links are followed


def test_a_long_warning_is_cut_short_and_printable(tmp_path, found):
    make_files(tmp_path, "a.png", *(f"{number}.txt" for number in range(7)), "evil\x1b[2J\n.txt")
    os.mkfifo(tmp_path / "0.png")
    assert found("") == (["a.png"], "0.png, 0.txt, 1.txt, 2.txt, 3.txt and 4 more")
    for number in range(7):
        (tmp_path / f"{number}.txt").unlink()
    assert found("") == (["a.png"], r"0.png, evil\x1b[2J\n.txt")


def test_a_folder_per_class(tmp_path, capsys):
    make_files(
        tmp_path, "ring/b.png", "ring/a.jpg", "circle/deep/c.png", ".cache/x.png", "circle/note.txt", "loose.png"
    )
    make_files(tmp_path.with_name("elsewhere"), "s.png", ".t.png")
    (tmp_path / "star").symlink_to(tmp_path.with_name("elsewhere"))
    paths, labels = find_labeled_images(tmp_path, CLASSES)
    names = ["circle/deep/c.png", "ring/a.jpg", "ring/b.png", "star/s.png"]
    assert [str(path.relative_to(tmp_path)) for path in paths] == names
    assert labels == [CLASSES.index(name) for name in ("circle", "ring", "ring", "star")]
    warning = capsys.readouterr().err
    assert warning.startswith("warning: left out (hidden, ")
    assert all(name in warning for name in (".cache", "circle/note.txt", "loose.png", "star/.t.png"))


def test_folders_that_are_not_labeled(tmp_path):
    def message(folder):
        with pytest.raises(InputError) as caught:
            find_labeled_images(folder, ("cat", "dog"))
        return str(caught.value).removeprefix(f"--images {folder}: ")

    assert message(tmp_path / "missing") == "must be a folder that holds folders named cat, dog"
    assert message(tmp_path).startswith("must hold images (.png, ")
    (tmp_path / "cat").mkdir()
    assert message(tmp_path).startswith("must hold images")
    (tmp_path / "zebra").mkdir()
    assert message(tmp_path) == "must hold folders named cat, dog; zebra is none of these"
