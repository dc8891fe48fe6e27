"""Images of every kind that Pillow knows: read as documented, or refused in one line that names the file."""

import importlib
import os
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_diffusion.data.decoding import MEMORY, UnreadableImage, image_shape, read_image
from lightning_diffusion.data.image_folder import ImageFolder
from tests.command import REPOSITORY
from tests.data.hostile import MB, SMALL, image, little_memory, png, saved, tree, zeros

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")
GREY16 = np.array([[0, 128, 129, 25700, 65535]], np.uint16)  # 257 of them are one step of 8 bits
CLEAR = [[[100, 0], [100, 51], [100, 255]]]  # grey and how much of it: none, a fifth, all
RED = Image.new("RGB", (1, 1), (255, 0, 0))
EXIF = Image.Exif()
EXIF[0x0112] = 8  # to be turned by three quarters
PALETTE = Image.new("P", (3, 1))
PALETTE.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
PALETTE.putdata([2, 0, 1])
MAC = png(2, 1, 8, 0, bytes([0, 7, 9]), (b"tRNS", struct.pack(">H", 7)))  # grey, of which 7 is transparent

CONVERTED = {
    "16-bit-grey-png": (saved(Image.fromarray(GREY16)), [[0, 0, 1, 100, 255]]),
    "16-bit-grey-tiff": (saved(Image.fromarray(GREY16), "TIFF"), [[0, 0, 1, 100, 255]]),
    "16-bit-grey-tiff-big-endian": (saved(Image.fromarray(GREY16.astype(">u2")), "TIFF"), [[0, 0, 1, 100, 255]]),
    "16-bit-colour-png": (png(1, 1, 16, 2, b"\0\xff\xff\x80\x01\x00\xff"), [[(255, 128, 0)]]),
    "16-bit-grey-and-alpha": (png(2, 1, 16, 4, b"\0\x64\0\xff\xff\x64\0\0\0"), [[100, 255]]),
    "1-bit": (png(3, 1, 1, 0, b"\0\xa0"), [[255, 0, 255]]),
    "2-bit-grey": (png(4, 1, 2, 0, b"\0\x1b"), [[0, 85, 170, 255]]),
    "palette-png": (saved(PALETTE), [[(70, 80, 90), (10, 20, 30), (40, 50, 60)]]),
    "palette-with-transparency": (saved(PALETTE, transparency=2), [[(255,) * 3, (10, 20, 30), (40, 50, 60)]]),
    "palette-with-levels-of-it": (
        saved(PALETTE, transparency=b"\xff\x00\x33"), [[(218, 220, 222), (10, 20, 30), (255,) * 3]]
    ),
    "palette-gif-with-transparency": (
        saved(PALETTE, "GIF", transparency=0), [[(70, 80, 90), (255,) * 3, (40, 50, 60)]]
    ),
    "grey-and-alpha": (saved(image(CLEAR)), [[255, 224, 100]]),
    "rgb-and-alpha": (saved(image([[[9, 8, 7, 0], [0, 50, 100, 51]]])), [[255, (204, 214, 224)]]),
    "rgb-and-alpha-webp": (saved(image([[[0, 50, 100, 255]]]), "WEBP", lossless=True), [[(0, 50, 100)]]),
    "rgb-and-alpha-tiff": (saved(image([[[9, 8, 7, 0]]]), "TIFF"), [[255]]),
    "one-grey-is-transparent": (MAC, [[255, 9]]),
    "one-colour-is-transparent": (png(1, 1, 8, 2, b"\0\1\2\3", (b"tRNS", b"\0\1\0\2\0\3")), [[255]]),
    "cmyk-tiff": (saved(Image.new("CMYK", (1, 1), (255, 0, 0, 0)), "TIFF"), [[(0, 255, 255)]]),
    "cmyk-jpeg": (saved(Image.new("CMYK", (8, 8)), "JPEG"), [[255] * 8] * 8),
    "grey-jpeg": (saved(Image.new("L", (8, 8), 77), "JPEG"), [[77] * 8] * 8),
    "bmp": (saved(RED, "BMP"), [[(255, 0, 0)]]),
    "animated-gif": (saved(RED, "GIF", save_all=True, append_images=[Image.new("RGB", (1, 1))]), [[(255, 0, 0)]]),
    "animated-png": (saved(RED, save_all=True, append_images=[Image.new("RGB", (1, 1))]), [[(255, 0, 0)]]),
    "animated-webp": (
        saved(RED, "WEBP", save_all=True, append_images=[Image.new("RGB", (1, 1))], lossless=True), [[(255, 0, 0)]]
    ),
    "tiff-of-two-pages": (saved(RED, "TIFF", save_all=True, append_images=[Image.new("L", (1, 1))]), [[(255, 0, 0)]]),
    "turned-png": (saved(image([[1, 2, 3]]), exif=EXIF), [[3], [2], [1]]),
    "turned-tiff": (saved(image([[1, 2, 3]]), "TIFF", exif=EXIF), [[3], [2], [1]]),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERTED)
def test_is_converted_as_documented(tmp_path, name):
    content, expected = CONVERTED[name]
    pixels = [[(value,) * 3 if isinstance(value, int) else value for value in row] for row in expected]
    path = tmp_path / "a.png"
    path.write_bytes(content)
    colour = torch.tensor(pixels, dtype=torch.uint8).permute(2, 0, 1)
    _, height, width = colour.shape
    assert read_image(path, (3, height, width)).tolist() == colour.tolist()
    grey = Image.fromarray(colour.permute(1, 2, 0).numpy()).convert("L")
    assert read_image(path, (1, height, width))[0].tolist() == np.asarray(grey).tolist()
    assert image_shape(path)[1:] == (height, width)


@pytest.mark.parametrize(
    ("name", "channels"),
    [("16-bit-grey-png", 1), ("1-bit", 1), ("grey-and-alpha", 1), ("palette-png", 3), ("bmp", 3), ("cmyk-jpeg", 3)],
)
def test_a_header_knows_grey_from_colour(tmp_path, name, channels):
    (tmp_path / "a.png").write_bytes(CONVERTED[name][0])
    assert image_shape(tmp_path / "a.png")[0] == channels


def cut(format, **options):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    content = saved(Image.fromarray(noise), format, **options)
    return content[: len(content) // 2]


def jpeg_of(width, height):
    content = saved(Image.new("RGB", (8, 8)), "JPEG")
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">2H", height, width) + content[at + 4 :]


def bmp_of(width, height):
    content = saved(Image.new("RGB", (8, 8)), "BMP")
    return content[:18] + struct.pack("<2i", width, height) + content[26:]


GIF = saved(Image.new("P", (1, 1)), "GIF")
WEBP = b"RIFF\x16\0\0\0WEBPVP8L\x0a\0\0\0\x2f" + struct.pack("<I", 16382 | 16382 << 14) + bytes(5)


def words(count, length):
    return png(8, 8, 8, 0, bytes(72), *[(b"zTXt", b"Comment\0\0" + zeros(length))] * count)


FLOAT = Image.new("F", (4, 4), 0.5)

REFUSED = {
    "empty": (b"", "the file is empty"),
    "text": (b"hello, world\n" * 9, "none of PNG, JPEG, WEBP, BMP, GIF, TIFF"),
    "html": (b"<!DOCTYPE html><title>404</title>", "none of PNG"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "none of PNG"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "none of PNG"),
    "random-bytes": (random.Random(0).randbytes(999), "none of PNG"),
    "32-bit-integers": (saved(Image.new("I", (4, 4), 70000), "TIFF"), "32 bits a pixel have no agreed white"),
    "32-bit-floats": (saved(FLOAT, "TIFF"), "32 bits a pixel have no agreed white"),
    "png-cut": (cut("PNG"), ""),
    "png-header-only": (SMALL[:33], ""),
    "png-signature-only": (SMALL[:8], ""),
    "png-wrong-checksum": (SMALL[:29] + b"abcd" + SMALL[33:], ""),
    "png-garbage-for-pixels": (SMALL[:41] + b"garbage!" + SMALL[49:], ""),
    "png-fewer-rows": (png(8, 8, 8, 0, bytes(20)), ""),
    "jpeg-cut": (cut("JPEG"), "truncated"),
    "gif-cut": (cut("GIF"), "truncated"),
    "webp-cut": (cut("WEBP"), ""),
    "tiff-cut": (cut("TIFF"), ""),
    "tiff-compressed-cut": (cut("TIFF", compression="tiff_lzw"), ""),
    "bmp-cut": (cut("BMP"), "truncated"),
    "zero-wide-png": (png(0, 5, 8, 0, b""), ""),
    "zero-high-gif": (GIF.replace(b"\1\0\1\0", b"\1\0\0\0"), ""),
    "zero-wide-bmp": (bmp_of(0, 5), ""),
    "zero-sized-jpeg": (jpeg_of(0, 0), ""),
    "bomb-png": (lambda: png(10000, 10000, 8, 0, 10000 * 10001), "10000×10000 pixels; at most 26,843,545 are"),
    "bomb-png-in-full": (
        lambda: png(30000, 30000, 1, 0, 30000 * 3751), "could be decompression bomb"
    ),
    "bomb-gif": (GIF[:6] + struct.pack("<2H", 65535, 65535) + GIF[10:], "bomb"),
    "bomb-jpeg": (jpeg_of(12000, 12000), "12000×12000 pixels"),
    "bomb-bmp": (bmp_of(2**30, 2**30), "bomb"),
    "bomb-webp": (lambda: saved(Image.new("L", (4200, 4200)), "WEBP", method=0), "at most 16,777,216 are read"),
    "bomb-webp-header-only": (WEBP, ""),
    "bomb-of-words-in-a-png": (lambda: words(1, 80 * MB), ""),
    "bomb-of-many-words-in-a-png": (lambda: words(80, MB), ""),
}  # fmt: skip


def check_refused(path, message):
    with pytest.raises(UnreadableImage) as caught:
        read_image(path, (3, 8, 8))
    line = str(caught.value)
    assert line.startswith(f"{path}: not a readable image ("), line
    assert line.endswith("); repair, shrink or remove it")
    assert message in line
    assert "\n" not in line


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_in_one_line(tmp_path, name):
    content, message = REFUSED[name]
    path = tmp_path / "a.png"
    path.write_bytes(content() if callable(content) else content)
    before = tree(tmp_path)
    with little_memory():
        check_refused(path, message)
    assert tree(tmp_path) == before


@pytest.mark.slow
def test_pillow_s_warnings_do_not_show(tmp_path):
    """In a process of its own: pytest has filters of its own."""
    (tmp_path / "cut.tif").write_bytes(cut("TIFF", compression="tiff_lzw"))
    (tmp_path / "large.png").write_bytes(png(10000, 10000, 8, 0, b""))
    program = f"""if True:
        import pathlib
        from lightning_diffusion.data.decoding import read_image
        for path in sorted(pathlib.Path({str(tmp_path)!r}).iterdir()):
            try:
                read_image(path, (3, 8, 8))
            except ValueError as error:
                print(path.name)
    """
    command = [sys.executable, "-W", "always:::PIL", "-c", program]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("cut.tif\nlarge.png\n", "")


def test_files_that_are_not_there(tmp_path):
    check_refused(tmp_path / "none.png", "No such file")
    check_refused(tmp_path, "Is a directory")
    (tmp_path / "circle.png").symlink_to("circle.png")
    check_refused(tmp_path / "circle.png", "Too many levels of symbolic links")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_files_and_folders_without_permission():
    with tempfile.TemporaryDirectory() as name:  # where everybody may look, unlike tmp_path
        folder = Path(name)
        (folder / "a.png").write_bytes(SMALL)
        (folder / "closed").mkdir()
        for path, mode in ((folder, 0o755), (folder / "a.png", 0), (folder / "closed", 0)):
            path.chmod(mode)
        options = {"channels": 3, "image_size": 8, "num_classes": None, "batch_size": 1}
        importlib.import_module(
            "torchvision.transforms.functional"
        )  # nobody else may be able to read the installed packages
        os.seteuid(65534)
        try:
            check_refused(folder / "a.png", "Permission denied")
            with pytest.raises(ValueError, match=f"data.root={folder}: {folder}/closed: Permission denied; make it"):
                ImageFolder(root=name, unreadable="skip", **options).setup()
        finally:
            os.seteuid(0)


LARGEST = {
    "png": lambda: png(5181, 5181, 8, 6, 5181 * (4 * 5181 + 1)),
    "webp": lambda: saved(Image.new("RGBA", (4096, 4096)), "WEBP", lossless=True, quality=0, method=0),
    "jpeg": lambda: saved(Image.new("CMYK", (4700, 4700)), "JPEG", progressive=True),
    "tiff": lambda: saved(Image.new("RGBA", (4700, 4700)), "TIFF", compression="tiff_adobe_deflate"),
}


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_that_are_read_take_little_memory(tmp_path, name):
    path = tmp_path / "a.png"
    path.write_bytes(LARGEST[name]())
    with little_memory():
        assert read_image(path, (3, 8, 8)).shape == (3, 8, 8)


def test_a_camera_s_24_million_pixels_are_read(tmp_path):
    assert MEMORY > 6000 * 4000 * 10
    path = tmp_path / "a.jpg"
    Image.new("RGB", (6000, 4000), (10, 20, 30)).save(path)
    assert read_image(path, (3, 2, 2))[:, 0, 0].tolist() == [10, 20, 30]


def test_a_line_of_a_million_pixels_is_not_enlarged(tmp_path):
    line = np.zeros((1, 10**6), np.uint8)
    line[0, 500_000 - 2 : 500_000 + 2] = 200
    Image.fromarray(line).save(tmp_path / "a.png")
    with little_memory(100):
        picture = read_image(tmp_path / "a.png", (1, 64, 64))
    assert (picture[:, :, 16:48] == 200).all()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_damage_anywhere_gives_an_image_or_the_line(tmp_path, format, capfd):
    """A hundred and fifty files with a few bytes changed, or cut, or both."""
    source = random.Random(0)
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    content, path, refused = saved(Image.fromarray(noise), format), tmp_path / "a.png", 0
    for _ in range(150):
        damaged = bytearray(content[: source.choice([len(content), source.randrange(len(content))])])
        for _ in range(source.randrange(4)):
            if damaged:
                damaged[source.randrange(min(len(damaged), 200))] = source.randrange(256)
        path.write_bytes(damaged)
        try:
            shape = read_image(path, (3, 8, 8)).shape
        except UnreadableImage:
            refused += 1
        else:
            assert shape == (3, 8, 8)
    assert 0 < refused < 150
    assert capfd.readouterr() == ("", "")
