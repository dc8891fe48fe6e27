"""Grey images of one filled shape each, computed instead of read: discs, squares, triangles and crosses."""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_diffusion.codecs.image_size import height_width, typed
from lightning_diffusion.data.dataset import ImageDataset
from lightning_diffusion.data.module import ImageDataModule, Split

COUNT: dict[Split, int] = {"train": 10_000, "val": 1_000}
MIN_SIDE = 8  # below which the shapes look alike
MAX_SEED = 2**31 - 1  # torch's generator on the CPU reads 32 bits, and each seed takes two of its streams
RADIUS = (0.25, 0.4)  # of the shorter side
BRIGHTNESS = (0.4, 1.0)
CHUNK = 2**22  # pixels drawn at once for a fingerprint


class Shapes(ImageDataModule):
    """10,000 images to train on and 1,000 held out. Image i of a split depends on (image_seed, split, i) only.

    Args:
        image_seed: of the images, 0 … 2³¹ − 1; `seed` is that of their order. No two pairs (image_seed, split) share
            random numbers.
        options: those of every data set; `channels` is 1, and the sides of `image_size` are at least 8.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, image_seed: int = 0, **options: Any) -> None:
        super().__init__(**options)
        if self.channels != 1:
            raise ValueError(f"data.channels={self.channels}: shapes are grey; choose data.channels=1")
        if min(height_width(self.image_size)) < MIN_SIDE:
            raise ValueError(f"data.image_size={typed(self.image_size)}: shapes need sides of at least {MIN_SIDE}")
        if not 0 <= image_seed <= MAX_SEED:
            raise ValueError(f"data.image_seed={image_seed}: choose a whole number from 0 to {MAX_SEED}")
        self.image_seed = image_seed

    def read(self, split: Split) -> ImageDataset:
        _, height, width = self.shape
        return ShapeImages(COUNT[split], height, width, stream=2 * self.image_seed + (split == "val"))


class ShapeImages(ImageDataset):
    """N images, drawn on access. Image i is of class i mod 4.

    Four numbers u ~ U[0, 1) of row i of a table decide the radius r, the brightness b and the centre c. The whole shape
    is inside: c_x ~ U[r, W − r), c_y ~ U[r, H − r). With the signed distance d from the shape, in pixels and negative
    inside, the value at p is 255 b clamp(½ − d(p − c), 0, 1): the covered share of a pixel if the edge is a straight
    line along the grid.

    The pixels need only operations that IEEE 754 rounds correctly, so an image is the same bits in every batch and on
    every machine.

    Args:
        stream: seed of the table, below 2³².

    Ref: dSprites, Matthey et al. 2017 (shapes with random factors)
    """

    def __init__(self, count: int, height: int, width: int, stream: int) -> None:
        self.height, self.width = height, width
        table = torch.rand(count, 4, generator=torch.Generator().manual_seed(stream))
        radius, brightness, x, y = table.unbind(1)
        self.radius = _between(*RADIUS, radius) * min(height, width)
        self.brightness = _between(*BRIGHTNESS, brightness)
        self.x, self.y = (_between(self.radius, side - self.radius, u) for side, u in ((width, x), (height, y)))

    def __len__(self) -> int:
        return len(self.radius)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        labels = indices % len(DISTANCES)
        images = torch.empty(len(indices), 1, self.height, self.width, dtype=torch.uint8)
        for label, distance in enumerate(DISTANCES):
            of_class = labels == label
            images[of_class] = self._draw(indices[of_class], distance)
        return images, labels

    def _draw(self, indices: Tensor, distance: "Distance") -> Tensor:
        radius, brightness, x, y = (
            values[indices, None, None, None] for values in (self.radius, self.brightness, self.x, self.y)
        )
        columns = torch.arange(self.width) + 0.5 - x  # (B, 1, 1, W), from the centre to the middle of each pixel
        rows = torch.arange(self.height)[:, None] + 0.5 - y  # (B, 1, H, 1)
        covered = (0.5 - distance(columns, rows, radius)).clamp(0, 1)
        return (255 * brightness * covered).round().to(torch.uint8)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{len(self)} {self.height} {self.width}".encode())  # N decides the labels
        for indices in torch.arange(len(self)).split(max(1, CHUNK // (self.height * self.width))):
            images, _ = self[indices]
            digest.update(images.numpy().data)
        return digest.hexdigest()

    def label_range(self) -> tuple[int, int]:
        return 0, min(len(self), len(DISTANCES)) - 1


Distance = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x, y, r) -> the signed distance from a shape that touches all four sides of the square |x|, |y| ≤ r; y points down.
A union is the minimum of distances and an intersection the maximum, near corners a lower bound. Ref: Hart 1996, Sphere
Tracing"""


def disc(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """√(x² + y²) − r."""
    return (x * x + y * y).sqrt() - r


def square(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """max(|x|, |y|) − r."""
    return torch.maximum(x.abs(), y.abs()) - r


def triangle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """max(y − r, (2|x| − y − r)/√5): between the corners (0, −r), (−r, r) and (r, r)."""
    return torch.maximum(y - r, (2 * x.abs() - y - r) / math.sqrt(5))


def cross(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """max(min(|x|, |y|) − r/3, max(|x|, |y|) − r): an upright cross of two bars of width 2r/3."""
    return torch.maximum(torch.minimum(x.abs(), y.abs()) - r / 3, torch.maximum(x.abs(), y.abs()) - r)


DISTANCES: tuple[Distance, ...] = (disc, square, triangle, cross)


def _between(low: float | Tensor, high: float | Tensor, u: Tensor) -> Tensor:
    """low + u (high − low)."""
    return low + u * (high - low)
