"""Images that answer a whole batch of indices at once, as uint8."""

import hashlib
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.images import Batch


class ImageDataset(ABC):
    """N images of one size; dataset[indices] with int64 indices (B,) -> (uint8 (B, C, H, W), int64 (B,) or None)."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor | None]: ...

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of every image and label as `dataset[…]` gives them, in order; 64 hexadecimal digits."""


class InMemory(ImageDataset):
    """Images held as one uint8 tensor (N, C, H, W), labels as int64 (N,) or None."""

    def __init__(self, images: Tensor, labels: Tensor | None = None) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"images must be uint8 (N, C, H, W), not {images.dtype} {tuple(images.shape)}")
        if labels is not None and len(labels) != len(images):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.images[indices], None if self.labels is None else self.labels[indices]

    def fingerprint(self) -> str:
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for tensor in (self.images,) if self.labels is None else (self.images, self.labels):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


class First(ImageDataset):
    """The first so many images of a data set."""

    def __init__(self, dataset: ImageDataset, count: int) -> None:
        self.dataset, self.count = dataset, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.dataset[indices]

    def fingerprint(self) -> str:
        return hashlib.sha256(f"first {self.count} {self.dataset.fingerprint()}".encode()).hexdigest()


class Mirrored(ImageDataset):
    """A data set and its mirror image, 2N images: horizontal flips without randomness."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return 2 * len(self.dataset)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        n = len(self.dataset)
        images, labels = self.dataset[indices % n]
        return torch.where((indices >= n)[:, None, None, None], images.flip(-1), images), labels

    def fingerprint(self) -> str:
        return hashlib.sha256(f"mirrored {self.dataset.fingerprint()}".encode()).hexdigest()


class Batches(Dataset[Batch]):
    """The DataLoader's view: a (start, indices) pair of an order -> the batch."""

    def __init__(self, dataset: ImageDataset, with_labels: bool) -> None:
        self.dataset, self.with_labels = dataset, with_labels

    def __getitem__(self, key: tuple[int, Tensor]) -> Batch:
        start, indices = key
        images, labels = self.dataset[indices]
        return Batch(images, labels if self.with_labels else None, start)
