"""Image files as a data set, and the checks of a folder of them."""

import hashlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lightning_diffusion.data import archive
from lightning_diffusion.data.dataset import ImageDataset, range_of
from lightning_diffusion.data.decoding import SUFFIXES, UnreadableImage, is_array_file, is_image_file, read_image
from lightning_diffusion.data.npz import ARRAYS
from lightning_diffusion.system.console import printable
from lightning_diffusion.system.progress import Phase

T = TypeVar("T")
NAMED = 3  # unreadable files named in the message
LINE = 2000  # characters of the message
Shape = tuple[int, int, int]
KEPT = 2**28  # bytes of decoded images kept in memory, so that each file is decoded once, not in every epoch


def image_files(folder: Path) -> list[Path]:
    """All pictures below a folder, sorted by path; if there are none, all .npy and .npz files.

    Raises:
        OSError: a folder that cannot be read; its images would be missing without notice.
    """

    def stop(error: OSError) -> None:
        raise error

    names = (Path(parent, name) for parent, _, names in os.walk(folder, onerror=stop) for name in names)
    found = sorted(path for path in names if is_image_file(path.name) or is_array_file(path.name))
    return [path for path in found if is_image_file(path.name)] or found  # with broken links and pipes: none is read


def folder_of(root: Path, cache_dir: str | None) -> Path:
    """The folder data.root, or that of an unpacked archive. Raises FileNotFoundError, or ValueError as `unpacked`."""
    if root.is_file():
        return archive.unpacked(root, cache_dir)
    if not root.is_dir():
        raise FileNotFoundError(
            f"data.root={root}: no such folder; name a folder of images or an archive of one "
            f"({' '.join(archive.ENDINGS)})"
        )
    return root


def files_of(folder: Path, source: str) -> list[Path]:
    """`image_files`, with errors that name the source: key=value."""
    try:
        return image_files(folder)
    except OSError as error:
        raise ValueError(f"{source}: {error.filename}: {error.strerror}; make it readable") from error


def stop_at_unreadable(items: Sequence[T], check: Callable[[T], object], source: str) -> Sequence[T]:
    """The items, all of which pass the check. Raises ValueError for the first that fails with UnreadableImage."""
    with Phase(f"looking through {source.partition('=')[2]}", len(items), "image") as phase:
        for item in items:
            try:
                check(item)
            except UnreadableImage as error:
                raise ValueError(f"{source}: {error}, or leave such files out with data.unreadable=skip") from error
            phase.advance()
    return items


def without_unreadable(
    items: Sequence[T], read: Callable[[T], object], name: Callable[[T], object], source: str
) -> Sequence[T]:
    """The items that can be read, which are the same in every run, in the same order. Prints how many cannot."""
    kept, failed = [], []
    with Phase(f"reading every image of {source.partition('=')[2]}", len(items), "image") as phase:
        for item in items:
            try:
                read(item)
                kept.append(item)
            except UnreadableImage:
                failed.append(str(name(item)))
            phase.advance()
    if failed:
        more = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
        _print_to_stderr(
            f"{source}: {len(failed)} of {len(items)} images are unreadable, left out: "
            f"{', '.join(failed[:NAMED])}{more}"
        )
    return kept


def check_count(count: int, are_some_unreadable: bool, source: str) -> None:
    """Raise FileNotFoundError unless there are enough images for two splits."""
    if count < 2:
        raise FileNotFoundError(
            f"{source}: {count} {'readable ' * are_some_unreadable}images below it; at least two files ending in "
            f"{' '.join(sorted(SUFFIXES))}, or in {' '.join(ARRAYS)}, are needed"
        )


@rank_zero_only
def _print_to_stderr(line: str) -> None:
    print(printable(line, LINE), file=sys.stderr)


class Files(ImageDataset):
    """Image files, read on first access, and kept in memory if all of them take at most KEPT bytes.

    Args:
        read: (path, (C, H, W)) -> uint8 (C, H, W).
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Tensor | None,
        shape: Shape,
        read: Callable[[Path, Shape], Tensor] = read_image,
    ) -> None:
        self.paths, self.labels, self.shape, self.read = paths, labels, shape, read
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
            return torch.stack([self.read(self.paths[i], self.shape) for i in indices.tolist()])
        if self._kept is None:
            self._kept = torch.empty(len(self.paths), *self.shape, dtype=torch.uint8)
        for i in indices[~self._is_kept[indices]].tolist():
            self._kept[i] = self.read(self.paths[i], self.shape)
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
