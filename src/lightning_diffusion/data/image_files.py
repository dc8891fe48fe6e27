"""Image files as a data set."""

import hashlib
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_diffusion.data.dataset import ImageDataset, range_of
from lightning_diffusion.data.decoding import is_image_file, read_image

KEPT = 2**28  # bytes of decoded images kept in memory, so that each file is decoded once, not in every epoch


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, sorted by path.

    Raises:
        OSError: a folder that cannot be read; its images would be missing without notice.
    """

    def stop(error: OSError) -> None:
        raise error

    names = (Path(parent, name) for parent, _, names in os.walk(folder, onerror=stop) for name in names)
    return sorted(path for path in names if is_image_file(path.name))  # with broken links and pipes: none is read


class Files(ImageDataset):
    """Image files, read on first access, and kept in memory if all of them take at most KEPT bytes."""

    def __init__(self, paths: list[Path], labels: Tensor | None, shape: tuple[int, int, int]) -> None:
        self.paths, self.labels, self.shape = paths, labels, shape
        self._keeps = len(paths) * math.prod(shape) <= KEPT
        self._kept: Tensor | None = None  # (N, C, H, W), filled where _is_kept
        self._is_kept = torch.zeros(len(paths), dtype=torch.bool)

    def __getstate__(self) -> dict[str, Any]:
        """The state without images: a loader process that receives this data set reads its own."""
        return self.__dict__ | {"_kept": None, "_is_kept": torch.zeros(len(self.paths), dtype=torch.bool)}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        images = self._images(indices)
        return images, None if self.labels is None else self.labels[indices]

    def _images(self, indices: Tensor) -> Tensor:
        if not self._keeps:
            return torch.stack([read_image(self.paths[i], self.shape) for i in indices.tolist()])
        if self._kept is None:
            self._kept = torch.empty(len(self.paths), *self.shape, dtype=torch.uint8)
        for i in indices[~self._is_kept[indices]].tolist():
            self._kept[i] = read_image(self.paths[i], self.shape)
            self._is_kept[i] = True
        return self._kept[indices]

    def label_range(self) -> tuple[int, int] | None:
        return range_of(self.labels)

    def fingerprint(self) -> str:
        labels = None if self.labels is None else self.labels.tolist()
        digest = hashlib.sha256(f"{self.shape} {labels}".encode())
        for path in self.paths:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()
