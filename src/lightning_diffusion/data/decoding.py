"""Image files of many formats, and arrays of one image, as uint8 tensors."""

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lightning_diffusion.data.npz import ARRAYS, array_shape, read_array_image

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
PICTURES = {1: "L", 3: "RGB"}  # the channels that any picture is converted to, with Pillow's name


MEMORY = 2**28  # bytes that decoding one image may take: 27 million pixels of a PNG or a colour JPEG
LONGEST = 16  # how often an image may cover the area of the network's images


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


def is_array_file(name: str) -> bool:
    """Whether a file has the name of one image as an array."""
    return Path(name).suffix.lower() in ARRAYS and not name.startswith("._")


def image_shape(path: Path) -> tuple[int, int, int]:
    """(C, H, W) of the upright image, C = 1 for grey and 3 for colour; of an array, as it is. Only the header is read.

    Raises:
        UnreadableImage: as `read_image`, for errors that the header shows.
    """
    if is_array_file(path.name):
        with _errors_of(path):
            return array_shape(path)
    with opened(path) as file:
        # Pillow has rotated a TIFF already, and reading a PNG's tags after its pixels would decode the pixels
        known = "exif" in file.info if file.format == "PNG" else file.format != "TIFF"
        tags = file.getexif() if known else {}
        width, height = file.size if tags.get(ExifTags.Base.Orientation, 1) < 5 else file.size[::-1]
        return 1 if file.mode.split(";")[0] in ("1", "L", "LA", "La", "I", "F") else 3, height, width


def check_image(path: Path, channels: int) -> None:
    """Raise UnreadableImage for errors of `read_image` that the file's header shows."""
    found = image_shape(path)[0]
    if is_array_file(path.name):
        with _errors_of(path):
            _check_channels(found, channels)
    elif channels not in PICTURES:
        with opened(path) as file:
            _check_channels(_pages(file) or len(file.getbands()), channels)


def read_image(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """Read one file as uint8 (C, H, W): rotate it by its EXIF tag, resize it (bicubic) to cover H×W, crop the centre.

    With C = 1 or 3, any picture becomes grey or RGB: 16-bit grey is scaled (65535 becomes 255), 16-bit colour keeps the
    high byte, transparent pixels are placed on white, palettes, 1-bit images and CMYK are converted. Only the first
    frame of an animation is read. With any other C, the channels are the pages of a TIFF, or the bands of a single
    picture, such as 4 of RGBA. An array, uint8 H×W×C or H×W in a .npy or .npz file, has exactly C channels.

    Raises:
        UnreadableImage: missing, forbidden, empty or truncated; not an image of FORMATS or a readable array; another
            number of channels; 32 bits per channel, for which there is no agreed white; or so large, by its header,
            that decoding would take more than MEMORY.
    """
    channels, height, width = shape
    with decoded(path, channels) as parts:
        return torch.cat([fitted(part, height, width) for part in parts])


def read_whole(path: Path, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """The image of one file at its own size, and resized to cover H×W without cropping, uint8 (C, …) each.

    Raises:
        UnreadableImage: as `read_image`, and for an image that is so long and thin that it covers H×W more than
            LONGEST times.
    """
    channels, height, width = shape
    with decoded(path, channels) as parts:
        H, W = parts[0].height, parts[0].width
        if math.prod(covering(H, W, height, width)) > LONGEST * height * width:
            raise ValueError(f"{H}×{W} pixels, longer and thinner than {LONGEST} images of {height}×{width} in a row")
        own = torch.cat([scaled(part, H, W) for part in parts])
        return own, torch.cat([scaled(part, height, width) for part in parts])


@contextlib.contextmanager
def decoded(path: Path, channels: int) -> Iterator[list[Image.Image]]:
    """The upright image as Pillow's images of modes "L" and "RGB", which together have C channels, see `read_image`.

    Any error inside the context counts as an error of the file.
    """
    if is_array_file(path.name):
        with _errors_of(path):
            pixels = read_array_image(path, MEMORY)
            _check_channels(pixels.shape[-1], channels)
            yield [Image.fromarray(np.ascontiguousarray(pixels[..., c])) for c in range(channels)]
    else:
        with opened(path) as file:
            yield _parts(file, channels)


def fitted(image: Image.Image, height: int, width: int, nearest: bool = False) -> Tensor:
    """The image resized to cover height × width, and cropped to its centre, uint8 (C, height, width).

    Args:
        nearest: each pixel is the nearest one of the image, which keeps class numbers; otherwise resizing is bicubic.
    """
    from torchvision.transforms import functional as F  # here, as it takes half a second

    # resizing would enlarge a very long, thin image, only for most of it to be cropped: crop it first
    reach = min(image.size) * max(8, math.ceil(max(height, width) / min(height, width)))
    if max(image.size) > reach:
        image = F.center_crop(image, [min(image.height, reach), min(image.width, reach)])
    return F.center_crop(scaled(image, height, width, nearest), [height, width])


def scaled(image: Image.Image, height: int, width: int, nearest: bool = False) -> Tensor:
    """The image resized to cover height × width, without cropping, uint8 (C, ≥ height, ≥ width). See `fitted`."""
    from torchvision.transforms import functional as F

    how = F.InterpolationMode.NEAREST if nearest else F.InterpolationMode.BICUBIC
    return F.pil_to_tensor(F.resize(image, covering(image.height, image.width, height, width), how))


def covering(H: int, W: int, height: int, width: int) -> list[int]:
    """The smallest [height, width] with the aspect ratio of H × W that covers height × width."""
    return [height, int(height * W / H)] if H * width <= W * height else [int(width * H / W), width]


def _parts(file: Image.Image, channels: int) -> list[Image.Image]:
    """The channels of a picture, as `decoded` gives them."""
    if channels in PICTURES:
        ImageOps.exif_transpose(file, in_place=True)
        return [_eight_bits(file, PICTURES[channels])]
    if not (pages := _pages(file)):
        _check_channels(len(file.getbands()), channels)
        return list(ImageOps.exif_transpose(file).split())
    _check_channels(pages, channels)
    size, parts = file.size, []
    for page in range(pages):
        file.seek(page)
        if file.size != size or len(file.getbands()) != 1:
            raise ValueError(f"page {page + 1} is not a grey image of {size[1]}×{size[0]} pixels")
        parts.append(_eight_bits(ImageOps.exif_transpose(file), "L"))
    return parts


def _pages(file: Image.Image) -> int:
    """The number of pages of a TIFF with several, 0 for any other file."""
    pages = getattr(file, "n_frames", 1) if file.format == "TIFF" else 1
    return pages if pages > 1 else 0


def _check_channels(found: int, channels: int) -> None:
    if found != channels:
        raise ValueError(f"it has {found} channel{'s' * (found != 1)}, not {channels}")


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
def opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture, read its header and check its size. Any error of Pillow counts as an error of the file."""
    # Pillow gets no path: it would map the file into memory, which garbles a rotated TIFF
    with _errors_of(path), path.open("rb") as raw, Image.open(raw, formats=tuple(FORMATS)) as file:
        _check_size(file)
        yield file


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Turn any error inside the context into UnreadableImage. Raise it for a pipe or a device, which could block."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError("a pipe or a device")
        yield
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
