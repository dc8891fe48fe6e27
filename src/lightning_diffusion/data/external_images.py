"""Images from other sources: a folder of files, or an .npz array."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_diffusion.data.dataset import ImageDataset, InMemory
from lightning_diffusion.data.decoding import SUFFIXES, UnreadableImage, image_shape, is_array_file, reason
from lightning_diffusion.data.image_files import Files, image_files
from lightning_diffusion.data.npz import read_npz

CLASSES = 100_000  # at most
ARRAYS = ("images", "arr_0")  # the names in the files of src.sample and of guided-diffusion


def read_images(path: Path, key: str) -> ImageDataset:
    """All images of a folder, in the order of their paths, or of an .npz file, without resizing.

    They have labels if the folder contains only class subfolders, or the .npz file an array `labels`.

    Args:
        key: of the configuration, for messages.

    Raises:
        FileNotFoundError, ValueError: missing or unreadable images, or images of several sizes.
    """
    if path.is_dir():
        return _read_folder(path, key)
    if not path.is_file():
        raise FileNotFoundError(f"{key}={path}: no such file or folder; give a folder of images or an .npz file")
    return read_array(path, key)


def _read_folder(folder: Path, key: str) -> ImageDataset:
    paths = image_files(folder)
    if not paths:
        raise FileNotFoundError(f"{key}={folder}: no file below it ends in {' '.join(sorted(SUFFIXES))} .npy .npz")
    try:
        shapes = {path: image_shape(path) for path in paths}
    except UnreadableImage as error:
        raise ValueError(f"{key}={folder}: {error}") from error
    (first, (_, height, width)), *rest = shapes.items()
    for path, (c, h, w) in rest:
        if is_array_file(path.name) and c != shapes[first][0]:
            raise ValueError(
                f"{key}={folder}: {first.name} has {shapes[first][0]} channels and {path.name} has {c}; arrays to "
                "compare must have equally many"
            )
        if (h, w) != (height, width):
            raise ValueError(
                f"{key}={folder}: {first.name} is {height}×{width} and {path.name} is {h}×{w} (H×W); images to "
                "compare must have one size; resize them first"
            )
    return Files(paths, _labels(paths, folder), (max(c for c, _, _ in shapes.values()), height, width))


def _labels(paths: list[Path], folder: Path) -> Tensor | None:
    names = [path.relative_to(folder).parts[0] for path in paths]
    classes = sorted(set(names))
    if len(classes) < 2 or any(path.parent == folder for path in paths):
        return None
    return torch.tensor([classes.index(name) for name in names])


def read_array(path: Path, key: str) -> InMemory:
    """All images of an .npz file, with their labels if there are any. Raises ValueError as `read_images` does."""
    try:
        arrays = read_npz(path, dict.fromkeys(ARRAYS, "u") | {"labels": "iufb"})
        labels = arrays.pop("labels", None)
        images = next(iter(arrays.values()), np.empty(0))
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise ValueError(f"holds {'×'.join(map(str, images.shape))} {images.dtype}")
    except Exception as error:  # on garbage zipfile and numpy raise nearly anything
        raise ValueError(
            f"{key}={path}: not a readable .npz file of images ({reason(error)}); it must hold an array "
            f"{' or '.join(ARRAYS)}, uint8 N×H×W×C or N×H×W"
        ) from error
    if images.ndim == 3:
        images = images[..., None]
    if labels is not None and labels.shape != (len(images),):
        raise ValueError(f"{key}={path}: {len(images)} images but {'×'.join(map(str, labels.shape))} labels")
    if labels is not None and not np.all((labels >= 0) & (labels < CLASSES) & (labels == np.floor(labels))):
        raise ValueError(f"{key}={path}: its labels must be whole numbers from 0 to {CLASSES - 1:,}; renumber them")
    return InMemory(_channels_first(images), None if labels is None else torch.from_numpy(labels).long())


def _channels_first(images: np.ndarray) -> Tensor:
    """(N, H, W, C) -> (N, C, H, W) in place, a block of images at a time: a copy would need twice the memory."""
    N, H, W, C = images.shape
    given = torch.from_numpy(images)
    turned = given.view(N, C, H, W)
    block = max(1, 2**24 // (H * W * C))
    for source, target in zip(given.split(block), turned.split(block), strict=True):
        target.copy_(source.permute(0, 3, 1, 2).clone())
    return turned
