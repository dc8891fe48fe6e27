"""MNIST and the data sets that share its files' names and format."""

from pathlib import Path
from typing import Any, Literal

from lightning_diffusion.data.dataset import ImageDataset, InMemory
from lightning_diffusion.data.download import downloading
from lightning_diffusion.data.idx import find, read_idx
from lightning_diffusion.data.module import ImageDataModule, Split

Name = Literal["MNIST", "FashionMNIST", "KMNIST"]
PREFIX: dict[Split, str] = {"train": "train", "val": "t10k"}
NAMES = [f"{prefix}-{part}" for prefix in PREFIX.values() for part in ("images-idx3-ubyte", "labels-idx1-ubyte")]


class MNIST(ImageDataModule):
    """60,000 training and 10,000 held-out grey images of 28×28 pixels, in ten classes.

    The four IDX files (`.gz` or not) are in `root`, or where torchvision puts them. Missing files are downloaded.

    Args:
        root: the folder of the files.
        dataset: torchvision's name of the data set, "MNIST", "FashionMNIST" or "KMNIST".
    """

    def __init__(
        self, root: str, dataset: Literal["MNIST", "FashionMNIST", "KMNIST"] = "MNIST", **options: Any
    ) -> None:
        super().__init__(**options)
        self.root, self.dataset = Path(root), dataset

    def fetch(self) -> None:
        if all(self._find(name) for name in NAMES):
            return
        import torchvision  # here, as it takes half a second

        try:
            with downloading(self.dataset, self.root):
                getattr(torchvision.datasets, self.dataset)(str(self.root), download=True)
        except (OSError, RuntimeError) as error:  # no network, a read-only folder, a mirror's bad answer
            missing = [name for name in NAMES if not self._find(name)]
            raise FileNotFoundError(
                f"data.root={self.root}: looked for {', '.join(missing)} (.gz or not) here and in "
                f"{self.dataset}/raw, and the download failed ({str(error).splitlines()[0]}); "
                f"place {self.dataset}'s four IDX files in {self.root} or name their folder with data.root=DIR"
            ) from error

    def read(self, split: Split) -> ImageDataset:
        images_path, labels_path = (
            self._find(f"{PREFIX[split]}-{part}") for part in ("images-idx3-ubyte", "labels-idx1-ubyte")
        )
        if images_path is None or labels_path is None:
            raise FileNotFoundError(
                f"data.root={self.root}: {self.dataset}'s IDX files are missing; give data=mnist "
                f"data.dataset={self.dataset} data.root=DIR, which can download them"
            )
        images, labels = read_idx(images_path, ndim=3), read_idx(labels_path, ndim=1)
        if len(images) != len(labels):
            raise ValueError(
                f"{images_path}: {len(images)} images, but {labels_path.name} has {len(labels)} labels; "
                "the two files do not belong together"
            )
        return InMemory(images[:, None], labels.long())

    def _find(self, name: str) -> Path | None:
        return find(self.root, ["", f"{self.dataset}/raw", "raw"], name)
