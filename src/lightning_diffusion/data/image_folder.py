"""A folder of images, with or without class subfolders."""

import sys
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lightning_diffusion.data import archive
from lightning_diffusion.data.dataset import ImageDataset
from lightning_diffusion.data.decoding import SUFFIXES, UnreadableImage, image_shape, read_image
from lightning_diffusion.data.image_files import Files, image_files
from lightning_diffusion.data.module import ImageDataModule, Split
from lightning_diffusion.data.order import check_fraction, shuffled_split
from lightning_diffusion.system.console import printable
from lightning_diffusion.system.progress import Phase

NAMED = 3  # unreadable files named in the message
LINE = 2000  # characters of the message


class ImageFolder(ImageDataModule):
    """Images scaled to cover image_size and cropped to its centre, in grey (channels=1) or colour (3).

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
        if self.channels not in (1, 3):
            raise ValueError(f"data.channels={self.channels}: image files are read as 1 (grey) or 3 (colour) channels")
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
        if self.root.is_file():
            return archive.unpacked(self.root, self.cache_dir)
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"data.root={self.root}: no such folder; name a folder of images or an archive of one "
                f"({' '.join(archive.ENDINGS)})"
            )
        return self.root

    @cached_property
    def _found(self) -> list[Path]:
        """All image files, readable or not, sorted by path."""
        folder = self.folder
        try:
            return image_files(folder)
        except OSError as error:
            raise ValueError(f"data.root={self.root}: {error.filename}: {error.strerror}; make it readable") from error

    @cached_property
    def paths(self) -> list[Path]:
        """The images of both splits, sorted by path."""
        found = self._found
        readable = self._checked_headers(found) if self.unreadable == "stop" else self._decodable(found)
        if len(readable) < 2:
            raise FileNotFoundError(
                f"data.root={self.root}: {len(readable)} {'' if readable == found else 'readable '}images below it; at "
                f"least two files ending in {' '.join(sorted(SUFFIXES))} are needed"
            )
        return readable

    def read(self, split: Split) -> ImageDataset:
        paths = self.paths
        labels = None if self.num_classes is None else self._labels(paths)
        train, val = shuffled_split(len(paths), self.val_fraction)
        chosen = train if split == "train" else val
        return Files([paths[i] for i in chosen], None if labels is None else labels[chosen], self.shape)

    def _checked_headers(self, paths: list[Path]) -> list[Path]:
        with Phase(f"looking through {self.root}", len(paths), "image") as phase:
            for path in paths:
                try:
                    image_shape(path)
                except UnreadableImage as error:
                    raise ValueError(
                        f"data.root={self.root}: {error}, or leave such files out with data.unreadable=skip"
                    ) from error
                phase.advance()
        return paths

    def _decodable(self, paths: list[Path]) -> list[Path]:
        """The readable files, which are the same in every run, in the same order."""
        failed = []
        with Phase(f"reading every image of {self.root}", len(paths), "image") as phase:
            for path in paths:
                failed += [] if _can_be_read(path, self.shape) else [path]
                phase.advance()
        if failed:
            names = ", ".join(str(path.relative_to(self.folder)) for path in failed[:NAMED])
            more = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
            _tell(
                f"data.root={self.root}: {len(failed)} of {len(paths)} images are unreadable, left out: {names}{more}"
            )
        return [path for path in paths if path not in set(failed)]

    def _class_folders(self, paths: list[Path]) -> list[str]:
        """The subfolder of the root that contains each path, or "" for the root itself."""
        return [path.relative_to(self.folder).parts[0] if path.parent != self.folder else "" for path in paths]

    def _labels(self, paths: list[Path]) -> Tensor:
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


@rank_zero_only
def _tell(line: str) -> None:
    print(printable(line, LINE), file=sys.stderr)


def _can_be_read(path: Path, shape: tuple[int, int, int]) -> bool:
    try:
        read_image(path, shape)
    except UnreadableImage:
        return False
    return True
