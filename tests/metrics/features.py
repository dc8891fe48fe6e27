"""Small extractors and image sets for the tests of metrics."""

import torch
from torch import nn

from lightning_diffusion.data.digits import Digits
from lightning_diffusion.metrics.extractors.base import Features
from lightning_diffusion.metrics.extractors.module import Module


class Images:
    """Random images of any kind."""

    def __init__(self, count, shape=(3, 16, 16), seed=0):
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(count, shape[0], 4, 4, generator=generator) * 255
        self.images = nn.functional.interpolate(coarse, shape[1:], mode="bilinear").round().to(torch.uint8)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, indices):
        return self.images[indices], None

    def fingerprint(self):
        return str(hash(self.images.numpy().tobytes()))


class Net(nn.Module):
    """A fixed random network of d features, in [0, ∞)."""

    def __init__(self, d=24, channels=3):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(d, channels, 5, 5, generator=generator) / 8)

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight, stride=2).relu().mean((2, 3))


def extractor(cache_dir, d=24, channels=3):
    made = Module(str(cache_dir), Net(d, channels), name="random")
    made.prepare(None)
    return made


def features(vectors):
    return Features(vectors, None)


def digits():
    data = Digits(channels=1, image_size=8, num_classes=10, batch_size=1)
    data.setup()
    return data.splits["train"], data.splits["val"]
