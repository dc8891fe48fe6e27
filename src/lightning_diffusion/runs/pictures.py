"""Grids and animations of uint8 images, as PNG and GIF files."""

import math
from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lightning_diffusion.codecs.masks import palette
from lightning_diffusion.system.files import make_folder, write, write_bytes


def square_columns(count: int, num_classes: int | None = None) -> int:
    """About √count columns. With classes it is a multiple of their number, so that each column shows one class."""
    K = num_classes or 1
    return K * max(1, round(math.sqrt(count) / K))


def columns_for(images: Tensor) -> int:
    """The number of columns that makes the grid of images (N, C, H, W) about square."""
    N, _, H, W = images.shape
    return max(1, round(math.sqrt(N * H / W)))


def grid(images: Tensor, columns: int | None = None, least_side: int = 512) -> Tensor:
    """Tiles uint8 images (N, C, H, W) row by row -> (1 or 3, H', W'), with a gap of one pixel.

    Images with one channel are grey, with three colour. With any other number, each image becomes a row of its channels
    in grey, from left to right, without gaps.

    Args:
        columns: about √N if None.
        least_side: minimal width of the picture, reached by enlarging it by a whole factor.
    """
    if images.shape[1] not in (1, 3):
        images = images.transpose(1, 2).flatten(2)[:, None]  # (N, 1, H, C·W)
    N, C, H, W = images.shape
    columns = columns or square_columns(N)
    rows = math.ceil(N / columns)
    picture = torch.full((C, rows * (H + 1) - 1, columns * (W + 1) - 1), 128, dtype=torch.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * (H + 1), i % columns * (W + 1)
        picture[:, y : y + H, x : x + W] = image
    factor = math.ceil(least_side / picture.shape[-1])
    return picture.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)


def with_texts(images: Tensor, texts: Sequence[str]) -> Tensor:
    """Images uint8 (N, C, H, W), enlarged by a whole factor, with a line of text below each -> (N, C, H', W')."""
    font, texts = ImageFont.load_default(), [text.replace(" ", "  ") for text in texts]  # this font's spaces are narrow
    boxes = [font.getbbox(text) for text in texts]
    width, height = (math.ceil(max([1, *(box[side] for box in boxes)])) + 2 for side in (2, 3))
    factor = math.ceil(width / images.shape[-1])
    images = images.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)
    lines = []
    for text in texts:
        line = Image.new("L", (images.shape[-1], height))
        ImageDraw.Draw(line).text((1, 0), text, fill=255, font=font)
        lines.append(torch.from_numpy(np.array(line)))
    below = torch.stack(lines)[:, None].expand(-1, images.shape[1], -1, -1)
    return torch.cat([images, below], dim=2)


def write_png(path: Path, picture: Tensor) -> None:
    """Writes uint8 (C, H, W), C = 1 or 3. Raises NotWritten."""
    make_folder(path.parent)
    array = picture.permute(1, 2, 0).numpy()
    image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    write(path, lambda file: image.save(file, "PNG"))


def write_mask(path: Path, mask: Tensor, num_classes: int) -> None:
    """Writes a mask (H, W) as a PNG with a palette: its values are the classes, shown in their colours.

    Raises NotWritten.
    """
    make_folder(path.parent)
    image = Image.fromarray(mask.numpy())
    image.putpalette(palette(num_classes).flatten().tolist())
    write(path, lambda file: image.save(file, "PNG"))


def write_gif(path: Path, pictures: Sequence[Tensor], seconds: float = 4.0, hold: float = 1.0) -> None:
    """Writes uint8 pictures (C, H, W) as an endlessly repeated animation of `seconds`; the last frame stays for `hold`.

    Raises NotWritten.
    """
    make_folder(path.parent)
    frames = [picture.expand(3, -1, -1).permute(1, 2, 0).numpy() for picture in pictures]
    durations = [1000 * seconds / len(frames)] * (len(frames) - 1) + [1000 * hold]  # milliseconds
    duration = durations if len(frames) > 1 else durations[0]  # Pillow accepts no list for a single frame
    write_bytes(path, imageio.imwrite("<bytes>", frames, extension=".gif", duration=duration, loop=0))
