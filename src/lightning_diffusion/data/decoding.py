"""Image files of many formats as uint8 tensors."""

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

# What is read, by Pillow's names and the endings of files. No other format is tried, whatever a file holds: Pillow
# hands some of them to other programs.
FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
}


SUFFIXES = {suffix for suffixes in FORMATS.values() for suffix in suffixes}


MEMORY = 2**28  # bytes that decoding one image may take: 27 million pixels of a PNG or a colour JPEG


# Once and for all: to silence Pillow around each image would make Python show every other warning again.
warnings.filterwarnings("ignore", module=r"PIL\.")


class UnreadableImage(ValueError):
    """A file that is not an image, or too large a one: one line that names it."""


def reason(error: Exception) -> str:
    """What an error says, in a few words of one line."""
    return str(getattr(error, "strerror", None) or str(error).split("\n")[0] or type(error).__name__)


def is_image_file(name: str) -> bool:
    """Whether a file's name is that of an image; ._name, which macOS puts beside name in its archives, is not."""
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith("._")


def image_shape(path: Path) -> tuple[int, int, int]:
    """(C, H, W) of the upright image as the file's header has it, C = 1 for grey and 3 for colour; nothing is decoded.

    Raises:
        UnreadableImage: as `read_image`, as far as the header tells.
    """
    with _opened(path) as file:
        # a TIFF is turned already, and to look for a PNG's tags behind its pixels would decode them
        known = "exif" in file.info if file.format == "PNG" else file.format != "TIFF"
        tags = file.getexif() if known else {}
        width, height = file.size if tags.get(ExifTags.Base.Orientation, 1) < 5 else file.size[::-1]
        return 1 if file.mode.split(";")[0] in ("1", "L", "LA", "La", "I", "F") else 3, height, width


def read_image(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """One file -> uint8 (C, H, W): upright by its EXIF tag, resized (bicubic) until it just covers H×W, centre crop.

    16-bit grey is scaled by its range (65535 becomes 255), of 16-bit colour the high byte is kept. What is transparent
    lies on white. Palettes, 1-bit images and CMYK become grey or RGB; of an animation the first frame is read.

    Raises:
        UnreadableImage: missing, forbidden, empty, truncated, no image of FORMATS, of 32 bits a channel (which have no
            agreed white), or so large that decoding would take more than MEMORY, which the header decides beforehand.
    """
    from torchvision.transforms import functional as F  # here, as it takes half a second

    channels, height, width = shape
    with _opened(path) as file:
        ImageOps.exif_transpose(file, in_place=True)
        image = _eight_bits(file, "L" if channels == 1 else "RGB")
        # a line of a million pixels would be enlarged with its shorter side; most of it is cropped away anyway
        reach = min(image.size) * max(8, math.ceil(max(height, width) / min(height, width)))
        if max(image.size) > reach:
            image = F.center_crop(image, [min(image.height, reach), min(image.width, reach)])
        image = F.resize(image, _covering(image, height, width), F.InterpolationMode.BICUBIC)
        return F.pil_to_tensor(F.center_crop(image, [height, width]))


def _covering(image: Image.Image, height: int, width: int) -> list[int]:
    """The least [height, width] of the image's own shape that covers another."""
    if image.height * width <= image.width * height:
        return [height, int(height * image.width / image.height)]
    return [int(width * image.height / image.width), width]


def _eight_bits(image: Image.Image, mode: str) -> Image.Image:
    """Any image as "L" or "RGB"; never more than two copies of it at once."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        image = image.convert("I").point([(value + 128) // 257 for value in range(65536)], "L")
    elif image.mode in ("I", "F"):
        raise ValueError("32 bits a pixel have no agreed white: save it with 8 or 16")
    elif image.has_transparency_data:
        seen, image = image if image.mode == "RGBA" else image.convert("RGBA"), Image.new("RGB", image.size, "white")
        image.paste(seen, mask=seen)
    return image if image.mode == mode else image.convert(mode)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file, its header read and its size checked; whatever Pillow raises is the file's fault."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError("a pipe or a device")  # which could block for ever
        # no path for Pillow, which would map the file into memory and so garble a turned TIFF
        with path.open("rb") as raw, Image.open(raw, formats=tuple(FORMATS)) as file:
            _check_size(file)
            yield file
    except Exception as error:  # on garbage Pillow raises nearly anything: SyntaxError, struct.error, zlib.error, …
        why = reason(error)
        if isinstance(error, UnidentifiedImageError):
            why = f"none of {', '.join(FORMATS)}" if path.stat().st_size else "the file is empty"
        raise UnreadableImage(f"{path}: not a readable image ({why}); repair, shrink or remove it") from error


def _check_size(file: Image.Image) -> None:
    """Raises ValueError for an image without pixels, and for one that decoding would need more than MEMORY for."""
    if min(file.size) < 1:
        raise ValueError(f"{file.height}×{file.width} pixels")
    # bytes a pixel, measured: two copies of four bytes and what the decoder holds. A progressive JPEG holds all of its
    # coefficients, a WebP two canvases, a TIFF a strip that may be all of it.
    coefficients = 2 * len(file.getbands())
    cost = {"JPEG": 4 + coefficients, "MPO": 4 + coefficients, "WEBP": 16, "TIFF": 12}.get(file.format or "", 10)
    if file.width * file.height > MEMORY // cost:
        raise ValueError(f"{file.height}×{file.width} pixels, of which {MEMORY // cost:,} are the most that are read")
