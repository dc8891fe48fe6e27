"""Pictures that a person gives, and the strip that shows what came of them."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.configuration.build import ConfigError
from lightning_diffusion.data.decoding import read_image
from lightning_diffusion.diffusion.editing.base import Editing
from lightning_diffusion.runs.pictures import grid

HALVES = ("left", "right", "top", "bottom", "middle")


class GivenPictures(NamedTuple):
    """Pictures, uint8 (B, C, H, W), their condition or None, and where to fill in, (H, W), or None."""

    pictures: Tensor
    condition: Condition | None
    mask: Tensor | None


def read_given(plain: dict[str, Any], editing: Editing, model: Any) -> GivenPictures:
    """What an edit works on, repeated for each of its variants.

    Raises:
        ConfigError: pictures, a mask or a label that are missing, unreadable or of no use here.
    """
    files = plain["images"]
    if not isinstance(files, list) or not files:
        raise ConfigError("images: missing; give picture files, images=[a.png,b.png]")
    if model.shape[0] not in (1, 3):
        raise ConfigError(f"images: picture files have 1 or 3 channels, and this model's images have {model.shape[0]}")
    pictures = torch.stack([_read("images", file, model.shape) for file in files])
    pictures = pictures.repeat(editing.num_variants, 1, 1, 1)
    if plain["label"] is not None:
        condition = one_class(plain["label"], len(pictures), model.num_classes)
    elif not model.needs_labels:
        condition = None
    else:
        raise ConfigError(
            f"label: this model knows images by their class alone; give label=0 … {model.num_classes - 1}"
        )
    mask = None
    if editing.needs_mask:
        mask = _mask(plain["mask"], model.shape)
    elif plain["mask"] is not None:
        raise ConfigError("mask: only edit=inpaint takes one; leave it out")
    return GivenPictures(pictures, condition, mask)


def one_class(label: Any, count: int, num_classes: int | None) -> Condition:
    """The same label for all, of length `count`."""
    if num_classes is None:
        raise ConfigError(f"label={label}: this model was trained without classes; leave label out")
    if not isinstance(label, int) or not 0 <= label < num_classes:
        raise ConfigError(f"label={label}: choose a whole number from 0 to {num_classes - 1}")
    return Condition(label=torch.full((count,), label))


def strip(columns: dict[str, Tensor], editing: Editing) -> Tensor:
    """One row for each picture: what was given once, then the results of all its variants. uint8 (C, H', W')."""
    V = editing.num_variants
    cells: list[Tensor] = []
    for name, column in columns.items():
        variants = column.chunk(V)
        cells.extend(variants[:1] if name in editing.inputs else variants)
    images = torch.stack(cells, dim=1)  # (rows, columns, C, H, W)
    return grid(images.flatten(0, 1), columns=len(cells))


def _read(key: str, file: Any, shape: tuple[int, int, int]) -> Tensor:
    path = Path(str(file))
    if not path.is_file():
        raise ConfigError(f"{key}={file}: no such file")
    return read_image(path, shape)


def _mask(name: Any, shape: tuple[int, int, int]) -> Tensor:
    """(H, W), 1 where to fill in: where a picture is white, or one of the halves by name."""
    _, H, W = shape
    if name is None:
        raise ConfigError(f"mask: missing; give a picture, white where to fill in, or one of {', '.join(HALVES)}")
    if name not in HALVES:
        return (_read("mask", name, (1, H, W))[0] >= 128).float()
    rows, columns = torch.arange(H)[:, None], torch.arange(W)[None, :]
    return (
        {
            "left": columns < W / 2,
            "right": columns >= W / 2,
            "top": rows < H / 2,
            "bottom": rows >= H / 2,
            "middle": (rows >= H // 4) & (rows < H - H // 4) & (columns >= W // 4) & (columns < W - W // 4),
        }[name]
        .expand(H, W)
        .float()
    )
