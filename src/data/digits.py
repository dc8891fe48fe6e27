"""scikit-learn's handwritten digits, which come with the package: 1,797 grey images of 8×8 pixels."""

import torch
from sklearn.datasets import load_digits

from src.data.dataset import ImageDataset, InMemory
from src.data.module import ImageDataModule, Split

NUM_HELD_OUT = 297


class Digits(ImageDataModule):
    """1,500 digits to train on, 297 held out by a fixed shuffle. Ref: UCI Optical Recognition of Handwritten Digits"""

    def read(self, split: Split) -> ImageDataset:
        digits = load_digits()
        images = torch.from_numpy(digits.images)[:, None]  # (1797, 1, 8, 8), 0 … 16
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        chosen = order[:-NUM_HELD_OUT] if split == "train" else order[-NUM_HELD_OUT:]
        pixels = (images * (255 / 16)).round().to(torch.uint8)
        return InMemory(pixels[chosen], torch.from_numpy(digits.target)[chosen].long())
