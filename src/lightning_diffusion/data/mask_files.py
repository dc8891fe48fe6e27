"""Masks in image files: the class of each pixel, as a palette index or a grey level."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from lightning_diffusion.codecs.masks import IGNORED
from lightning_diffusion.data.dataset import WrongLabel
from lightning_diffusion.data.decoding import decoded, fitted, is_array_file, opened

MODES: Final = ("1", "P", "L")  # of Pillow: black and white, a palette, 8-bit grey
LOSSY: Final = ("JPEG", "MPO", "WEBP")  # formats that can change the values of pixels
NO_CLASS: Final = -1


class WrongTarget(WrongLabel):
    """A readable file that is no mask of these classes, or does not fit its image; one line that names the file."""


@dataclass(frozen=True)
class MaskReader:
    """Reads a mask as uint8 (1, H, W), resized and cropped as its image is, by the nearest pixel.

    The values of a file are its palette indices, its grey levels, or 0 and 1 if it is black and white. An array is
    uint8 H×W.

    Args:
        mask_classes: K, from 2 to 255.
        levels: the K values of the classes 0 … K − 1; None if the values are the class numbers. They do not apply to
            black and white.
        ignore: the value of pixels whose class is unknown, which becomes IGNORED; None if there are none.
    """

    mask_classes: int
    levels: tuple[int, ...] | None = None
    ignore: int | None = None

    def __call__(self, path: Path, shape: tuple[int, int, int]) -> Tensor:
        """Raises UnreadableImage as `read_image` does, and WrongTarget."""
        image = _image(path)
        values = np.asarray(image).astype(np.uint8)  # of a palette, the indices
        classes = (self._table if image.mode != "1" else MaskReader(self.mask_classes)._table)[values]
        if (classes == NO_CLASS).any():
            raise WrongTarget(f"{path}: {self._remedy(int(values[classes == NO_CLASS].max()))}")
        return fitted(Image.fromarray(classes.astype(np.uint8)), *shape[1:], nearest=True)

    def check(self, path: Path) -> None:
        """Raise UnreadableImage or WrongTarget for any error of the file."""
        self(path, (1, 1, 1))

    @cached_property
    def _table(self) -> np.ndarray:
        """The class of each value, int16 (256,)."""
        table = np.full(256, NO_CLASS, dtype=np.int16)
        table[list(self.levels or range(self.mask_classes))] = np.arange(self.mask_classes)
        if self.ignore is not None:
            table[self.ignore] = IGNORED
        return table

    def _remedy(self, value: int) -> str:
        if self.levels is not None:
            levels = ",".join(map(str, self.levels))
            return f"the value {value} is not in data.levels=[{levels}]; add it, or set data.ignore={value}"
        return (
            f"the value {value} is not a class of data.mask_classes={self.mask_classes}, 0 to {self.mask_classes - 1}; "
            f"set data.mask_classes={value + 1}, or data.ignore={value} if it marks unknown pixels, or give the values "
            "of the classes as data.levels=[0,…]"
        )


def _image(path: Path) -> Image.Image:
    """The upright mask, in one of MODES."""
    if is_array_file(path.name):
        with decoded(path, 1) as parts:
            return parts[0]
    with opened(path) as file:
        problem = _problem(file)
        image = file if problem else ImageOps.exif_transpose(file)
    if problem:
        raise WrongTarget(f"{path}: {problem}")
    return image


def _problem(file: Image.Image) -> str | None:
    """The reason why a picture is no mask, with the remedy, or None. Only the header is read."""
    if file.format in LOSSY:
        return f"a mask in the format {file.format}, which can change the values of pixels; save it as PNG"
    if file.mode.startswith(("I", "F")):
        return "a mask of more than 8 bits a pixel; save it with 8, as palette indices or grey levels"
    if file.mode not in MODES:
        return (
            f"a mask in colour or with transparency (mode {file.mode}); save the class numbers as palette indices or "
            "grey levels"
        )
    return None
