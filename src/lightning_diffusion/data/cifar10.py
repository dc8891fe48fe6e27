"""CIFAR-10."""

from pathlib import Path
from typing import Any

import torch
import torchvision

from lightning_diffusion.data.dataset import ImageDataset, InMemory
from lightning_diffusion.data.download import downloading
from lightning_diffusion.data.module import ImageDataModule, Split
from lightning_diffusion.system.progress import Phase


class CIFAR10(ImageDataModule):
    """50,000 training and 10,000 held-out colour images of 32×32 pixels, in ten classes.

    torchvision downloads the archive into `root`, or unpacks the one that is there. In both cases it checks the
    published checksum.

    Args:
        root: folder that contains cifar-10-python.tar.gz or the unpacked cifar-10-batches-py.
    """

    def __init__(self, root: str, **options: Any) -> None:
        super().__init__(**options)
        self.root = Path(root)

    def fetch(self) -> None:
        try:
            with downloading("CIFAR-10", self.root):
                torchvision.datasets.CIFAR10(str(self.root), download=True)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"data.root={self.root}: looked for cifar-10-batches-py and cifar-10-python.tar.gz with their "
                f"published checksums; the download failed ({str(error).splitlines()[0]}); place the archive there"
            ) from error

    def read(self, split: Split) -> ImageDataset:
        try:
            with Phase(f"reading CIFAR-10 from {self.root}"):
                dataset = torchvision.datasets.CIFAR10(str(self.root), train=split == "train")
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"data.root={self.root}: cifar-10-batches-py is missing, or its files do not have the published "
                "checksums; give data=cifar10 data.root=DIR, which can download them"
            ) from error
        images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()  # (N, 3, 32, 32)
        return InMemory(images, torch.tensor(dataset.targets))
