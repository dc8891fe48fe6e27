"""Any folder of images, with or without class subfolders."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.data.dataset import ImageDataset
from src.data.module import ImageDataModule, Split
from src.images import read_image

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class ImageFolder(ImageDataModule):
    """Images resized on their shorter side and centre-cropped to image_size, grey (channels=1) or colour (channels=3).

    With data.num_classes=K the K subfolders of `root`, sorted by name, are the classes; without, every image below
    `root` counts and labels are left out.

    Args:
        root: the folder.
        val_fraction: share held out, in (0, 1), by a fixed shuffle of the sorted paths; at least one image.
    """

    def __init__(self, root: str, val_fraction: float = 0.1, **options: Any) -> None:
        super().__init__(**options)
        if not 0 < val_fraction < 1:
            raise ValueError(f"data.val_fraction={val_fraction}: choose 0 < val_fraction < 1")
        self.root, self.val_fraction = Path(root), val_fraction

    def read(self, split: Split) -> ImageDataset:
        if not self.root.is_dir():
            raise FileNotFoundError(f"data.root={self.root}: no such folder; name a folder of images")
        paths = image_files(self.root)
        if len(paths) < 2:
            raise FileNotFoundError(
                f"data.root={self.root}: {len(paths)} images below it; at least two files ending in "
                f"{' '.join(sorted(SUFFIXES))} are needed"
            )
        labels = None if self.num_classes is None else self._labels(paths)
        order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))
        num_val = min(max(1, round(self.val_fraction * len(paths))), len(paths) - 1)
        chosen = order[num_val:] if split == "train" else order[:num_val]
        return Files([paths[i] for i in chosen], None if labels is None else labels[chosen], self.shape)

    def _labels(self, paths: list[Path]) -> Tensor:
        folders = [path.relative_to(self.root).parts[0] if path.parent != self.root else "" for path in paths]
        classes = sorted(set(folders))
        if len(classes) != self.num_classes or "" in classes:
            loose = folders.count("")
            raise ValueError(
                f"data.num_classes={self.num_classes}: {self.root} has {len(set(classes) - {''})} class folders"
                + (f" and {loose} images outside them" if loose else "")
                + "; set data.num_classes to the number of class folders, or to null"
            )
        return torch.tensor([classes.index(folder) for folder in folders])


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, by path."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


class Files(ImageDataset):
    """Image files, read when they are asked for."""

    def __init__(self, paths: list[Path], labels: Tensor | None, shape: tuple[int, int, int]) -> None:
        self.paths, self.labels, self.shape = paths, labels, shape

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        images = torch.stack([read_image(self.paths[i], self.shape) for i in indices.tolist()])
        return images, None if self.labels is None else self.labels[indices]

    def fingerprint(self) -> str:
        labels = None if self.labels is None else self.labels.tolist()
        digest = hashlib.sha256(f"{self.shape} {labels}".encode())
        for path in self.paths:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()
