"""The inputs of an edit (pictures, class, mask) and the strip that shows its results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.configuration.arguments import Text
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.data.decoding import UnreadableImage, read_image
from lightning_diffusion.diffusion.editing.base import Editing
from lightning_diffusion.models.contracts import Generator
from lightning_diffusion.runs.pictures import grid

AREAS = ("left", "right", "top", "bottom", "middle")


class EditInputs(NamedTuple):
    """Pictures, uint8 (B, C, H, W), their condition or None, and the mask of the area to fill in, (H, W), or None."""

    pictures: Tensor
    condition: Condition | None
    mask: Tensor | None


def read_inputs(
    files: Sequence[Text] | None, label: int | None, mask: Text | None, editing: Editing, model: Any
) -> EditInputs:
    """The inputs of an edit, read from files.

    Raises:
        ConfigError: a picture is missing or unreadable, or `prepare_inputs` refuses the inputs.
    """
    if not files:
        raise ConfigError("images: missing; give picture files, images=[a.png,b.png]")
    pictures = torch.stack([_read("images", file, model.shape) for file in files])
    return prepare_inputs(pictures, label, mask, editing, model)


def prepare_inputs(pictures: Tensor, label: Any, mask: Any, editing: Editing, model: Any) -> EditInputs:
    """The inputs of an edit, repeated for each of its variants.

    Args:
        pictures: uint8 (N, C, H, W).
        label: one for all, or one for each (N,), or None.
        mask: (H, W), 1 where to fill in; or the name of an area, a picture's file, or None.

    Raises:
        ConfigError: a mask or a label is missing, invalid or not used by this edit.
    """
    V = editing.num_variants
    condition = label_condition(label, len(pictures), model.num_classes)
    if condition is None and isinstance(model, Generator) and model.needs_labels:
        last = (model.num_classes or 1) - 1
        raise ConfigError(f"label: missing; this model needs the class of each image, label=0 … {last}")
    if mask is not None and not editing.needs_mask:
        raise ConfigError("mask: only edit=inpaint uses a mask; leave it out")
    return EditInputs(
        pictures.repeat(V, 1, 1, 1),
        None if condition is None else Condition.cat([condition] * V),
        _mask(mask, model.shape) if editing.needs_mask else None,
    )


def label_condition(label: Any, count: int, num_classes: int | None) -> Condition | None:
    """The classes of `count` images, from one class for all or one for each; None for None.

    Raises:
        ConfigError: the model does not have such a class, or the number of classes is wrong.
    """
    if label is None or isinstance(label, int):
        return None if label is None else same_label(label, count, num_classes)
    try:
        labels = torch.as_tensor(label).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"label={label!r}: expected a whole number or {count} of them") from error
    if labels.ndim == 0 and isinstance(labels.item(), int):
        return same_label(labels.item(), count, num_classes)
    if labels.shape != (count,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ConfigError(f"label: expected a whole number or {count} of them, got shape {tuple(labels.shape)}")
    for each in labels.unique().tolist():
        same_label(each, 1, num_classes)
    return Condition(label=labels.long())


def same_label(label: Any, count: int, num_classes: int | None) -> Condition:
    """The same class for `count` images."""
    if num_classes is None:
        raise ConfigError(f"label={label}: this model was trained without classes; leave it out")
    if not isinstance(label, int) or not 0 <= label < num_classes:
        raise ConfigError(f"label={label}: choose a whole number from 0 to {num_classes - 1}")
    return Condition(label=torch.full((count,), label))


def with_label(condition: Condition | None, label: Condition) -> Condition:
    """The condition with another label; its other parts stay."""
    return label if condition is None else Condition(**condition.parts | label.parts)


def strip(columns: dict[str, Tensor], editing: Editing) -> Tensor:
    """One row for each picture: its inputs, then the results of all its variants. uint8 (C, H', W')."""
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
    try:
        return read_image(path, shape)
    except UnreadableImage as error:
        raise ConfigError(f"{key}: {error}") from error


def _mask(name: Any, shape: tuple[int, int, int]) -> Tensor:
    """(H, W), 1 where to fill in: the white part of a picture, an area by name, or the tensor itself."""
    _, H, W = shape
    if isinstance(name, Tensor):
        if name.shape != (H, W):
            raise ConfigError(f"mask: expected {H}×{W}, true where to fill in, got {tuple(name.shape)}")
        return (name > 0).float()
    if name is None:
        raise ConfigError(f"mask: missing; give a picture that is white where to fill in, or one of {', '.join(AREAS)}")
    if name not in AREAS:
        if not Path(str(name)).is_file():
            raise ConfigError(f"mask={name}: no such file; give a picture, or one of {', '.join(AREAS)}")
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
