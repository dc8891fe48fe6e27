"""The images of one .npz file, with any number of channels."""

from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_diffusion.data.dataset import ImageDataset, InMemory
from lightning_diffusion.data.external_images import read_array
from lightning_diffusion.data.module import ImageDataModule, Split
from lightning_diffusion.data.order import check_fraction, shuffled_split


class ArrayFile(ImageDataModule):
    """The array `images` or `arr_0` of an .npz file, uint8 N×H×W×C or N×H×W, and its `labels`, N whole numbers.

    Args:
        root: path of the file.
        val_fraction: share held out, in (0, 1), by a fixed shuffle; at least one image.
    """

    def __init__(self, root: str, val_fraction: float = 0.1, **options: Any) -> None:
        super().__init__(**options)
        self.root, self.val_fraction = Path(root), val_fraction
        check_fraction(val_fraction)

    @cached_property
    def _whole(self) -> InMemory:
        if not self.root.is_file():
            raise FileNotFoundError(f"data.root={self.root}: no such file; name an .npz file of images")
        whole = read_array(self.root, "data.root")
        if len(whole) < 2:
            raise ValueError(f"data.root={self.root}: {len(whole)} images, at least two are needed")
        return whole

    def read(self, split: Split) -> ImageDataset:
        train, val = shuffled_split(len(self._whole), self.val_fraction)
        images, labels = self._whole[train if split == "train" else val]
        return InMemory(images, labels)
