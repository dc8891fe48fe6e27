"""scikit-learn's handwritten digits, which come with the package: 1,797 grey images of 8×8 pixels."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_diffusion.data.dataset import ImageDataset, InMemory
from lightning_diffusion.data.module import ImageDataModule, Split

NUM_HELD_OUT = 297


class Digits(ImageDataModule):
    """1,500 digits to train on, 297 held out by a fixed shuffle. Ref: UCI Optical Recognition of Handwritten Digits"""

    def read(self, split: Split) -> ImageDataset:
        images, labels = read_digits()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        chosen = order[:-NUM_HELD_OUT] if split == "train" else order[-NUM_HELD_OUT:]
        pixels = (images * (255 / 16)).round().to(torch.uint8)
        return InMemory(pixels[chosen], labels[chosen])


def read_digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 8, 8) with values 0 … 16, and their labels (1797,). The file is read without importing
    scikit-learn, which takes two seconds, unless it is not where recent versions have it."""
    package = importlib.util.find_spec("sklearn")
    folders = package.submodule_search_locations if package is not None else None
    path = Path(folders[0] if folders else ".") / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        table = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.int64))
        return table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1]
    from sklearn.datasets import load_digits

    digits = load_digits()
    return torch.from_numpy(digits.images)[:, None].long(), torch.from_numpy(digits.target).long()
