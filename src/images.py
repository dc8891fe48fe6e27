"""The door between images as files and loggers have them (uint8) and as the model has them (float in [−1, 1])."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as imageio
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import functional as F


class Batch(NamedTuple):
    """What a loader yields.

    images: uint8 (B, C, H, W). labels: int64 (B,), or None where the data has none. start: the first image's
    position in the order of the data (in training an endless one); it names the batch on every rank and in every run.
    """

    images: Tensor
    labels: Tensor | None
    start: int


def to_model(images: Tensor) -> Tensor:
    """uint8 0 … 255 -> float32 in [−1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Float, clipped to [−1, 1] -> uint8 0 … 255, rounded to nearest: the inverse of `to_model`."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def square_columns(count: int, num_classes: int | None = None) -> int:
    """About √count columns; with classes a multiple of their number, so that a column shows one class."""
    K = num_classes or 1
    return K * max(1, round(math.sqrt(count) / K))


def grid(images: Tensor, columns: int | None = None, least_side: int = 512) -> Tensor:
    """Tiles uint8 images (N, C, H, W) row by row -> (C, H', W'), with a gap of one pixel.

    Args:
        columns: about √N if None.
        least_side: small images are enlarged by a whole factor until the picture is at least this wide.
    """
    N, C, H, W = images.shape
    columns = columns or square_columns(N)
    rows = math.ceil(N / columns)
    picture = torch.full((C, rows * (H + 1) - 1, columns * (W + 1) - 1), 128, dtype=torch.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * (H + 1), i % columns * (W + 1)
        picture[:, y : y + H, x : x + W] = image
    factor = math.ceil(least_side / picture.shape[-1])
    return picture.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)


def read_image(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """One file -> uint8 (C, H, W): upright by its EXIF tag, shorter side resized (bicubic), centre crop.

    Raises:
        ValueError: a file that cannot be read as an image.
    """
    channels, height, width = shape
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image ({error}); repair or remove it") from error
    image = F.resize(image, min(height, width), F.InterpolationMode.BICUBIC)
    return F.pil_to_tensor(F.center_crop(image, [height, width]))


def write_png(path: Path, picture: Tensor) -> None:
    """Writes uint8 (C, H, W), C = 1 or 3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = picture.permute(1, 2, 0).numpy()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(path)


def write_gif(path: Path, pictures: Sequence[Tensor], seconds: float = 4.0, hold: float = 1.0) -> None:
    """Writes uint8 pictures (C, H, W) as an endless animation of `seconds`, the last frame held for `hold`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [picture.expand(3, -1, -1).permute(1, 2, 0).numpy() for picture in pictures]
    duration = [1000 * seconds / len(frames)] * (len(frames) - 1) + [1000 * hold]  # milliseconds
    imageio.imwrite(path, frames, extension=".gif", duration=duration, loop=0)
