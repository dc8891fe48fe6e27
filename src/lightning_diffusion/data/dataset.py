"""Image data sets that return a whole batch of images at once, as uint8."""

import hashlib
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.data.batch import Batch
from lightning_diffusion.data.captions import Description


class Sample(NamedTuple):
    """images: uint8 (B, C, H, W). labels: int64 (B,) or None. targets, instances: see `Batch`. description: the parts
    of a condition that the data set offers, or None. shown, attributes, tokens: the parts that `data.conditions` makes,
    or None; see `Condition`."""

    images: Tensor
    labels: Tensor | None
    targets: Tensor | None
    instances: Tensor | None = None
    shown: Tensor | None = None
    attributes: Tensor | None = None
    tokens: Tensor | None = None
    description: Description | None = None

    def condition(self, num_classes: int | None) -> Condition | None:
        """The condition of these images: the labels, unless `num_classes` is None, and the parts that a source made."""
        labels = None if num_classes is None else self.labels
        parts = {"label": labels, "attributes": self.attributes, "image": self.shown, "tokens": self.tokens}
        given = {name: part for name, part in parts.items() if part is not None}
        return Condition(**given) if given else None


class ImageDataset(ABC):
    """N images of one size; dataset[indices] with int64 indices (B,) -> (uint8 (B, C, H, W), int64 (B,) or None)."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor | None]: ...

    def sample(self, indices: Tensor) -> Sample:
        """The images and labels of dataset[indices] with their targets; by default there are none."""
        images, labels = self[indices]
        return Sample(images, labels, None)

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of every image and label as `dataset[…]` gives them, in order; 64 hexadecimal digits."""

    def label_range(self) -> tuple[int, int] | None:
        """The smallest and the largest label, or None without labels or if finding them means reading every image."""
        return None


class WrongLabel(ValueError):
    """A label outside the classes; the message is one line that names the key."""


def range_of(labels: Tensor | None) -> tuple[int, int] | None:
    if labels is None or not len(labels):
        return None
    least, largest = labels.aminmax()
    return int(least), int(largest)


def check_labels(labels: tuple[int, int] | None, num_classes: int) -> None:
    """Raise WrongLabel if the smallest or the largest label is not one of 0 … num_classes − 1."""
    if labels is None or 0 <= labels[0] <= labels[1] < num_classes:
        return
    remedy = "number the classes from 0" if labels[0] < 0 else f"set data.num_classes={labels[1] + 1}"
    raise WrongLabel(
        f"data.num_classes={num_classes}: these images have label {labels[0] if labels[0] < 0 else labels[1]}, and "
        f"0 to {num_classes - 1} are allowed; {remedy}, or set data.num_classes=null to train without classes"
    )


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

    def label_range(self) -> tuple[int, int] | None:
        return range_of(self.labels)


class First(ImageDataset):
    """The first `count` images of a data set."""

    def __init__(self, dataset: ImageDataset, count: int) -> None:
        self.dataset, self.count = dataset, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.dataset[indices]

    def sample(self, indices: Tensor) -> Sample:
        return self.dataset.sample(indices)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"first {self.count} {self.dataset.fingerprint()}".encode()).hexdigest()

    def label_range(self) -> tuple[int, int] | None:
        return self.dataset.label_range()


class Mirrored(ImageDataset):
    """A data set and its mirror image, 2N images: horizontal flips without randomness."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return 2 * len(self.dataset)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.sample(indices)[:2]

    def sample(self, indices: Tensor) -> Sample:
        """The mirror image of a target that has the size of the image, such as a mask, is mirrored too, and so is the
        image of the condition."""
        n = len(self.dataset)
        sample, flipped = self.dataset.sample(indices % n), indices >= n
        images, targets = _mirrored(sample.images, flipped), sample.targets
        if targets is not None and targets.shape[-2:] == images.shape[-2:]:
            targets = _mirrored(targets, flipped)
        instances = None if sample.instances is None else _mirrored(sample.instances, flipped)
        shown = None if sample.shown is None else _mirrored(sample.shown, flipped)
        return sample._replace(images=images, targets=targets, instances=instances, shown=shown, description=None)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"mirrored {self.dataset.fingerprint()}".encode()).hexdigest()

    def label_range(self) -> tuple[int, int] | None:
        return self.dataset.label_range()


def _mirrored(images: Tensor, flipped: Tensor) -> Tensor:
    """(B, …, W) with those images mirrored for which `flipped` (B,) is true."""
    return torch.where(flipped.reshape(-1, *[1] * (images.ndim - 1)), images.flip(-1), images)


class Batches(Dataset[Batch]):
    """The data set of the DataLoader: a pair (start, indices) of an order -> the batch.

    Args:
        num_classes: None omits labels; otherwise they are the condition.

    Raises:
        WrongLabel: on access, if the labels could not be checked in advance.
    """

    def __init__(self, dataset: ImageDataset, num_classes: int | None) -> None:
        self.dataset, self.num_classes = dataset, num_classes
        self._unknown = num_classes is not None and dataset.label_range() is None

    def __getitem__(self, key: tuple[int, Tensor]) -> Batch:
        start, indices = key
        sample = self.dataset.sample(indices)
        if self._unknown and self.num_classes is not None:
            check_labels(range_of(sample.labels), self.num_classes)
        return Batch(sample.images, sample.condition(self.num_classes), start, sample.targets, sample.instances)
