"""The prediction of a whole picture's mask, of any size, with a network for images of one size."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_diffusion.codecs.masks import as_colour, coloured, overlaid
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.data.decoding import is_array_file, is_image_file, read_whole
from lightning_diffusion.data.image_files import files_of
from lightning_diffusion.models.contracts import Model, Predictor


class MaskedPicture(NamedTuple):
    """image, mask: uint8 (C, H, W) and (H, W) in the size of the file. tile: uint8 (3, h, 3w + 2), the middle of the
    picture as the network sees it, its mask, and both together."""

    image: Tensor
    mask: Tensor
    tile: Tensor


class MaskPredictor:
    """A model that predicts masks, for pictures of any size.

    A picture is resized as training images are, until it covers the network's H×W. It is not cropped: the network
    predicts one window of H×W for each part, evenly spaced, and each pixel gets the class from the window whose middle
    is nearest. The mask is then resized to the size of the picture, by the nearest pixel.

    Raises:
        ConfigError: the model predicts no masks.
    """

    def __init__(self, model: Model) -> None:
        if not isinstance(model, Predictor) or model.mask_classes is None:
            raise ConfigError(
                f"ckpt_path: a {type(model).__name__} predicts no masks; choose a run of model=segmentation"
            )
        self.model: Predictor = model
        self.shape, self.num_classes = model.shape, model.mask_classes

    def __call__(self, path: Path) -> MaskedPicture:
        """Raises UnreadableImage."""
        image, covering = read_whole(path, self.shape)
        mask = self.whole(covering)
        _, height, width = self.shape
        top, left = (mask.shape[0] - height) // 2, (mask.shape[1] - width) // 2
        seen = covering[None, :, top : top + height, left : left + width]
        found = mask[None, top : top + height, left : left + width]
        line = torch.full((1, 3, height, 1), 128, dtype=torch.uint8)
        panels = [as_colour(seen), line, coloured(found, self.num_classes), line]
        tile = torch.cat([*panels, overlaid(seen, found, self.num_classes)], dim=-1)[0]
        rows, columns = (nearest(*sides) for sides in zip(mask.shape, image.shape[1:], strict=True))
        return MaskedPicture(image, mask[rows[:, None], columns], tile)

    def whole(self, image: Tensor) -> Tensor:
        """The mask (H', W') of an image (C, H', W') that is at least as large as those of the network."""
        _, height, width = self.shape
        tops, lefts = window_starts(image.shape[1], height), window_starts(image.shape[2], width)
        windows = [image[:, top : top + height, left : left + width] for top in tops for left in lefts]
        masks = self.model.predict(torch.stack(windows)).cpu().reshape(len(tops), len(lefts), height, width)
        y, x = torch.arange(image.shape[1])[:, None], torch.arange(image.shape[2])[None]
        (i, row), (j, column) = inside(y, tops, height), inside(x, lefts, width)
        return masks[i, j, row, column]


def window_starts(length: int, window: int) -> Tensor:
    """The first pixels of as few windows as cover a side, evenly spaced from edge to edge."""
    count = -(-length // window)
    return torch.linspace(0, length - window, count).round().long()


def inside(pixels: Tensor, starts: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """(number of the window, position in it) for each pixel: of the window whose middle is nearest."""
    distances = (pixels[..., None] - starts - (window - 1) / 2).abs()
    chosen = distances.argmin(-1)
    return chosen, pixels - starts[chosen]


def nearest(length: int, wanted: int) -> Tensor:
    """For each of `wanted` pixels, the pixel among `length` in which its middle is, when both cover the same side."""
    return ((torch.arange(wanted, dtype=torch.float64) + 0.5) * length / wanted).long().clamp(max=length - 1)


def pictures(images: Path) -> dict[str, Path]:
    """The files of images=…, by the name of their results: their path without the ending, or with it if another file
    has the same name.

    Raises:
        ConfigError: no such file or folder, a folder without pictures, or names that cannot be told apart.
    """
    if not images.exists():
        raise ConfigError(f"images={images}: no such file or folder")
    if images.is_dir():
        paths, folder = files_of(images, f"images={images}"), images
    else:
        paths, folder = [images] if is_image_file(images.name) or is_array_file(images.name) else [], images.parent
    if not paths:
        raise ConfigError(f"images={images}: no picture; give a picture file, or a folder of them")
    inner = [path.relative_to(folder) for path in paths]
    counts = Counter(path.with_suffix("") for path in inner)
    names = [str(path.with_suffix("") if counts[path.with_suffix("")] == 1 else path) for path in inner]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"images={images}: two results would have the name {twice[0]}.png; rename one of the files")
    return dict(zip(names, paths, strict=True))
