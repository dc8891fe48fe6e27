"""Image files of many formats as uint8 tensors."""

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

# Supported formats: Pillow's name and the file name endings. No other format is tried, whatever a file contains:
# Pillow passes some of them to external programs.
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


# Globally: a filter around each image would make Python show every other warning again.
warnings.filterwarnings("ignore", module=r"PIL\.")


class UnreadableImage(ValueError):
    """A file that is not an image, or an image that is too large; the message is one line that names the file."""


def reason(error: Exception) -> str:
    """The reason for an error, in a few words on one line."""
    return str(getattr(error, "strerror", None) or str(error).split("\n")[0] or type(error).__name__)


def is_image_file(name: str) -> bool:
    """Whether a file has the name of an image. ._name is not one: macOS adds it to archives next to name."""
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith("._")


def image_shape(path: Path) -> tuple[int, int, int]:
    """(C, H, W) of the upright image, C = 1 for grey and 3 for colour. Only the file's header is read.

    Raises:
        UnreadableImage: as `read_image`, for errors that the header shows.
    """
    with _opened(path) as file:
        # Pillow has rotated a TIFF already, and reading a PNG's tags after its pixels would decode the pixels
        known = "exif" in file.info if file.format == "PNG" else file.format != "TIFF"
        tags = file.getexif() if known else {}
        width, height = file.size if tags.get(ExifTags.Base.Orientation, 1) < 5 else file.size[::-1]
        return 1 if file.mode.split(";")[0] in ("1", "L", "LA", "La", "I", "F") else 3, height, width


def read_image(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """Read one file as uint8 (C, H, W): rotate it by its EXIF tag, resize it (bicubic) to cover H×W, crop the centre.

    16-bit grey is scaled (65535 becomes 255); 16-bit colour keeps the high byte. Transparent pixels are placed on
    white. Palettes, 1-bit images and CMYK become grey or RGB. Only the first frame of an animation is read.

    Raises:
        UnreadableImage: missing, forbidden, empty or truncated; not an image of FORMATS; 32 bits per channel, for which
            there is no agreed white; or so large, by its header, that decoding would take more than MEMORY.
    """
    from torchvision.transforms import functional as F  # here, as it takes half a second

    channels, height, width = shape
    with _opened(path) as file:
        ImageOps.exif_transpose(file, in_place=True)
        image = _eight_bits(file, "L" if channels == 1 else "RGB")
        # resizing would enlarge a very long, thin image, only for most of it to be cropped: crop it first
        reach = min(image.size) * max(8, math.ceil(max(height, width) / min(height, width)))
        if max(image.size) > reach:
            image = F.center_crop(image, [min(image.height, reach), min(image.width, reach)])
        image = F.resize(image, _covering(image, height, width), F.InterpolationMode.BICUBIC)
        return F.pil_to_tensor(F.center_crop(image, [height, width]))


def _covering(image: Image.Image, height: int, width: int) -> list[int]:
    """The smallest [height, width] with the image's aspect ratio that covers height × width."""
    if image.height * width <= image.width * height:
        return [height, int(height * image.width / image.height)]
    return [int(width * image.height / image.width), width]


def _eight_bits(image: Image.Image, mode: str) -> Image.Image:
    """Convert any image to "L" or "RGB", with at most two copies in memory."""
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
    """Open the file, read its header and check its size. Any error of Pillow counts as an error of the file."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError("a pipe or a device")  # which could block for ever
        # Pillow gets no path: it would map the file into memory, which garbles a rotated TIFF
        with path.open("rb") as raw, Image.open(raw, formats=tuple(FORMATS)) as file:
            _check_size(file)
            yield file
    except Exception as error:  # on garbage Pillow raises nearly anything: SyntaxError, struct.error, zlib.error, …
        why = reason(error)
        if isinstance(error, UnidentifiedImageError):
            why = f"none of {', '.join(FORMATS)}" if path.stat().st_size else "the file is empty"
        raise UnreadableImage(f"{path}: not a readable image ({why}); repair, shrink or remove it") from error


def _check_size(file: Image.Image) -> None:
    """Raise ValueError for an image without pixels, or one whose decoding would take more than MEMORY."""
    if min(file.size) < 1:
        raise ValueError(f"{file.height}×{file.width} pixels")
    # bytes a pixel, measured: two copies of four bytes and what the decoder holds. A progressive JPEG holds all of its
    # coefficients, a WebP two canvases, a TIFF a strip that may be all of it.
    coefficients = 2 * len(file.getbands())
    cost = {"JPEG": 4 + coefficients, "MPO": 4 + coefficients, "WEBP": 16, "TIFF": 12}.get(file.format or "", 10)
    if file.width * file.height > MEMORY // cost:
        raise ValueError(f"{file.height}×{file.width} pixels; at most {MEMORY // cost:,} are read")
