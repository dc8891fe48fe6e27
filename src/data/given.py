"""Images that somebody else has made: a folder of files, or an .npz array."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from src.data.dataset import ImageDataset, InMemory
from src.data.image_folder import SUFFIXES, Files, image_files

ARRAYS = ("images", "arr_0")  # src.sample's name, and that of guided-diffusion's sample files
GREY = {"1", "L", "LA", "I", "F"}  # Pillow's modes with one channel of light


def read_images(path: Path, key: str) -> ImageDataset:
    """All images of a folder, in the order of their paths, or of an .npz file; as they are, none is resized.

    In a folder with class subfolders alone, or in an .npz with an array `labels`, the images have labels.

    Args:
        key: of the configuration, for messages.

    Raises:
        FileNotFoundError, ValueError: nothing there, unreadable, or of several sizes.
    """
    if path.is_dir():
        return _read_folder(path, key)
    if not path.is_file():
        raise FileNotFoundError(f"{key}={path}: no such file or folder; give a folder of images or an .npz file")
    return _read_npz(path, key)


def _read_folder(folder: Path, key: str) -> ImageDataset:
    paths = image_files(folder)
    if not paths:
        raise FileNotFoundError(f"{key}={folder}: no file below it ends in {' '.join(sorted(SUFFIXES))}")
    first, colour = None, False
    for path in paths:
        try:
            with Image.open(path) as image:
                size, mode = image.size, image.mode
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise ValueError(f"{key}={path}: not a readable image ({error}); repair or remove it") from error
        first = first or (path, size)
        colour |= mode not in GREY
        if size != first[1]:
            told = " and ".join(f"{p.name} is {w}×{h}" for p, (w, h) in (first, (path, size)))
            raise ValueError(f"{key}={folder}: {told}; images that are compared must be of one size, resize them first")
    assert first is not None
    width, height = first[1]
    return Files(paths, _labels(paths, folder), (3 if colour else 1, height, width))


def _labels(paths: list[Path], folder: Path) -> Tensor | None:
    names = [path.relative_to(folder).parts[0] for path in paths]
    classes = sorted(set(names))
    if len(classes) < 2 or any(path.parent == folder for path in paths):
        return None
    return torch.tensor([classes.index(name) for name in names])


def _read_npz(path: Path, key: str) -> ImageDataset:
    try:
        with np.load(path, allow_pickle=False) as file:
            name = next((name for name in ARRAYS if name in file), None)
            images = None if name is None else file[name]
            labels = file.get("labels")
    except (ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{key}={path}: not a readable .npz file ({type(error).__name__})") from error
    if images is None or images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape:
        raise ValueError(f"{key}={path}: must hold an array {' or '.join(ARRAYS)}, uint8 N×H×W×C or N×H×W")
    if images.ndim == 3:
        images = images[..., None]
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"{key}={path}: its images have {images.shape[-1]} channels in place of 1 or 3 (N×H×W×C)")
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return InMemory(tensor, None if labels is None else torch.from_numpy(labels).long())
