"""A folder of images, with or without class subfolders."""

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_diffusion.data.dataset import ImageDataset
from lightning_diffusion.data.decoding import check_image, read_image
from lightning_diffusion.data.image_files import (
    Files,
    check_count,
    files_of,
    folder_of,
    stop_at_unreadable,
    without_unreadable,
)
from lightning_diffusion.data.module import ImageDataModule, Split
from lightning_diffusion.data.order import check_fraction, shuffled_split


class ImageFolder(ImageDataModule):
    """Images scaled to cover image_size and cropped to its centre, in grey (channels=1) or colour (3).

    With any other number of channels, the files are .npy or .npz arrays, TIFFs of as many pages, or pictures with as
    many bands (`read_image`).

    With data.num_classes=K, the classes are the K subfolders of `root`, sorted by name. With None, all images below
    `root` are used, without labels.

    Args:
        num_classes: "auto" uses the classes of the folder, see `count_classes`.
        root: the folder, or an archive of it (`archive.ENDINGS`), which is unpacked once for each content.
        val_fraction: share held out, in (0, 1), by a fixed shuffle of the sorted paths; at least one image.
        unreadable: "stop" raises an error for an unreadable image: at once if the header is damaged, otherwise when
            it is read. "skip" decodes every file once in advance, and omits and counts those that fail.
        cache_dir: folder for unpacked archives; None for `archive.cache_folder`.
    """

    def __init__(
        self,
        root: str,
        num_classes: int | Literal["auto"] | None = None,
        val_fraction: float = 0.1,
        unreadable: Literal["stop", "skip"] = "stop",
        cache_dir: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_classes=None if num_classes == "auto" else num_classes, **options)
        self._has_counted = num_classes != "auto"
        check_fraction(val_fraction)
        self.root, self.val_fraction = Path(root), val_fraction
        self.unreadable, self.cache_dir = unreadable, cache_dir

    def fetch(self) -> None:
        self.folder  # noqa: B018 - one process unpacks, before the others look

    def setup(self, stage: str | None = None) -> None:
        if not self._has_counted:
            self.num_classes, self._has_counted = self.count_classes(), True
        super().setup(stage)

    def count_classes(self) -> int | None:
        """The number of subfolders, if there are several, hold all images, and two images or more on average.

        Otherwise None. No image is decoded.
        """
        folders = self._class_folders(self._found)
        count = len(set(folders))
        return count if "" not in folders and 2 <= count <= len(folders) / 2 else None

    @cached_property
    def folder(self) -> Path:
        return folder_of(self.root, self.cache_dir)

    @cached_property
    def _found(self) -> list[Path]:
        """All image files, readable or not, sorted by path."""
        return files_of(self.folder, f"data.root={self.root}")

    @cached_property
    def paths(self) -> Sequence[Path]:
        """The images of both splits, sorted by path."""
        found, source = self._found, f"data.root={self.root}"
        if self.unreadable == "stop":
            readable = stop_at_unreadable(found, partial(check_image, channels=self.channels), source)
        else:
            folder = self.folder
            readable = without_unreadable(
                found, partial(read_image, shape=self.shape), lambda path: path.relative_to(folder), source
            )
        check_count(len(readable), len(readable) < len(found), source)
        return readable

    def read(self, split: Split) -> ImageDataset:
        paths = self.paths
        labels = None if self.num_classes is None else self._labels(paths)
        train, val = shuffled_split(len(paths), self.val_fraction)
        chosen = train if split == "train" else val
        return Files([paths[i] for i in chosen], None if labels is None else labels[chosen], self.shape)

    def _class_folders(self, paths: Sequence[Path]) -> list[str]:
        """The subfolder of the root that contains each path, or "" for the root itself."""
        return [path.relative_to(self.folder).parts[0] if path.parent != self.folder else "" for path in paths]

    def _labels(self, paths: Sequence[Path]) -> Tensor:
        folders = self._class_folders(paths)
        classes = sorted(set(folders))
        if len(classes) != self.num_classes or "" in classes:
            loose = folders.count("")
            raise ValueError(
                f"data.num_classes={self.num_classes}: {self.root} has {len(set(classes) - {''})} class folders"
                + (f" and {loose} images outside them" if loose else "")
                + "; leave data.num_classes out, which counts them, or set it to null to train without classes"
            )
        return torch.tensor([classes.index(folder) for folder in folders])
