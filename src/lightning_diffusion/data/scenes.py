"""Scenes of several items on a cluttered background, computed instead of read, with exact masks."""

import hashlib
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_diffusion.codecs.image_size import height_width, typed
from lightning_diffusion.data.dataset import ImageDataset, InMemory, Sample
from lightning_diffusion.data.digits import Digits
from lightning_diffusion.data.mnist import MNIST
from lightning_diffusion.data.module import ImageDataModule, Split

COUNT: Final[dict[Split, int]] = {"train": 10_000, "val": 1_000}
MASK_CLASSES: Final = 11  # the background, and the ten classes of items
MIN_SIDE: Final = 16  # below which items cannot be recognised
MAX_SEED: Final = 2**31 - 1  # torch's generator on the CPU reads 32 bits, and each seed takes two of its streams
ITEMS: Final = (2, 4)  # least and largest number of items in a scene
PIECES: Final = 6  # parts of items in the background
SIZE: Final = (0.3, 0.5)  # of an item, as a share of the canvas's shorter side
PIECE: Final = 0.4  # side of a piece, as a share of its item's
BRIGHTNESS: Final = (0.4, 1.0)  # of items and pieces
GRID: Final = 5  # random values along each side of the canvas, between which the background is interpolated
BACKGROUND: Final = 0.6  # its greatest brightness
SHADE: Final = 0.3  # brightness of an item where its picture is black, as a share of its own
OUTLINE: Final = {"digits": 96, "fashion_mnist": 16}  # the least value of a pixel that belongs to an item
STEPS: Final = 16  # positions within a pixel that interpolation distinguishes
CHUNK: Final = 2**20  # pixels composed at once for a fingerprint


class Scenes(ImageDataModule):
    """10,000 scenes to train on and 1,000 held out. Scene i of a split depends on (items, image_seed, split, i) only.

    Training scenes contain training items only, held-out scenes held-out items only.

    Args:
        items: "digits" of scikit-learn, 8×8, or "fashion_mnist", 28×28.
        root: folder of Fashion-MNIST's files; None for digits.
        image_seed: of the scenes, 0 … 2³¹ − 1; `seed` is that of their order.
        mask_classes: values of a mask: 0 is the background, 1 + k an item of class k; 11.
        options: those of every data set; `channels` is 1, `num_classes` None, and the sides of `image_size` ≥ 16.

    Raises:
        ValueError: a value out of range.
    """

    has_instances = True

    def __init__(
        self,
        items: Literal["digits", "fashion_mnist"] = "digits",
        root: str | None = None,
        image_seed: int = 0,
        mask_classes: int = MASK_CLASSES,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if self.channels != 1:
            raise ValueError(f"data.channels={self.channels}: scenes are grey; choose data.channels=1")
        if self.num_classes is not None:
            raise ValueError(f"data.num_classes={self.num_classes}: a scene has no class; choose data.num_classes=null")
        if mask_classes != MASK_CLASSES:
            raise ValueError(f"data.mask_classes={mask_classes}: scenes have {MASK_CLASSES}; leave it out")
        if min(height_width(self.image_size)) < MIN_SIDE:
            raise ValueError(f"data.image_size={typed(self.image_size)}: scenes need sides of at least {MIN_SIDE}")
        if not 0 <= image_seed <= MAX_SEED:
            raise ValueError(f"data.image_seed={image_seed}: choose a whole number from 0 to {MAX_SEED}")
        if items == "fashion_mnist" and root is None:
            raise ValueError("data.items=fashion_mnist: name the folder of its files with data.root=DIR")
        if items == "digits" and root is not None:
            raise ValueError(f"data.root={root}: the digits need no files; leave it out, or choose another data.items")
        self.items, self.root, self.image_seed, self.mask_classes = items, root, image_seed, mask_classes

    @cached_property
    def _source(self) -> ImageDataModule:
        """The data set of the items."""
        if self.root is None:
            return Digits(channels=1, image_size=8, num_classes=10, batch_size=1)
        return MNIST(self.root, "FashionMNIST", channels=1, image_size=28, num_classes=10, batch_size=1)

    def fetch(self) -> None:
        self._source.fetch()

    def read(self, split: Split) -> ImageDataset:
        items = self._source.read(split)
        assert isinstance(items, InMemory)
        _, height, width = self.shape
        stream = 2 * self.image_seed + (split == "val")
        return SceneImages(COUNT[split], height, width, items, OUTLINE[self.items], stream)


class Item(NamedTuple):
    """An item of a scene: its class, its number in the items' data set, the left and upper edge and the side of its
    square in pixels, its brightness in (0, 1], and how many of its pixels are visible."""

    label: int
    number: int
    left: float
    top: float
    side: float
    brightness: float
    visible: int


class Scene(NamedTuple):
    """B scenes: images uint8 (B, 1, H, W), and for each pixel the number of its item in the order of painting, from 1,
    and 1 + the item's class, both uint8 (B, H, W) and 0 in the background."""

    images: Tensor
    instances: Tensor
    masks: Tensor


class SceneImages(ImageDataset):
    """N scenes, composed on access. Uniform random numbers of row i of a table decide everything about scene i.

    Layers are painted from the bottom to the top, each over the ones before:

        background   GRID × GRID random values, interpolated, up to the brightness BACKGROUND
        pieces       PIECES squares cut from items
        items        two to four, each whole and within the canvas

    An item has the value v(p) ∈ [0, 255] at pixel p of its square, interpolated bilinearly. It is visible where v(p) ≥
    `outline`, unless a later item covers it. Its brightness there is b (SHADE + (1 − SHADE) v(p) / 255). Pieces are
    painted in the same way, but belong to the background: neither brightness nor strokes alone tell items from it.

    An interpolated value is a whole number of 1/256, which float64 and float32 represent exactly, whatever the order of
    the sum. A scene is therefore the same bits in every batch and on every machine.

    Args:
        items: square images with classes.
        outline: the least value of an item's pixels, 1 … 255.
        stream: seed of the table, below 2³².

    Ref: Recurrent Models of Visual Attention, Mnih et al. 2014, §4.1 (clutter from pieces of other items)
    """

    def __init__(self, count: int, height: int, width: int, items: InMemory, outline: int, stream: int) -> None:
        assert items.labels is not None
        self.height, self.width, self.outline = height, width, outline
        self.pictures, self.classes = items.images[:, 0], items.labels
        most, shorter, N = ITEMS[1], min(height, width), len(items)
        columns = (1, GRID * GRID, 5 * (PIECES + most), 2 * PIECES)
        table = torch.rand(count, sum(columns), generator=torch.Generator().manual_seed(stream))
        number, grid, layers, cuts = table.split(columns, dim=1)
        self.num_items = ITEMS[0] + (number[:, 0] * (most + 1 - ITEMS[0])).long()
        self.grid = (grid * (255 * BACKGROUND)).long().reshape(count, 1, GRID, GRID)
        pick, size, x, y, brightness = layers.reshape(count, PIECES + most, 5).unbind(2)  # (N, L) each
        self.number, self.side = (pick * N).long().clamp(max=N - 1), _between(*SIZE, size) * shorter
        self.brightness = _between(*BRIGHTNESS, brightness)
        self.shown = torch.cat([PIECE * self.side[:, :PIECES], self.side[:, PIECES:]], dim=1)  # side that is visible
        cut = torch.cat([cuts, torch.zeros(count, 2 * most)], dim=1).reshape(count, PIECES + most, 2)
        self.window_x, self.window_y = x * (width - self.shown), y * (height - self.shown)  # its left and upper edge
        hidden = self.side - self.shown
        self.left, self.top = self.window_x - cut[..., 0] * hidden, self.window_y - cut[..., 1] * hidden

    def __len__(self) -> int:
        return len(self.num_items)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, None]:
        return self.compose(indices).images, None

    def sample(self, indices: Tensor) -> Sample:
        scene = self.compose(indices)
        return Sample(scene.images, None, scene.masks, scene.instances)

    def compose(self, indices: Tensor) -> Scene:
        """The scenes with these numbers."""
        values = self._values(indices)  # (B, L, H, W)
        layers = torch.arange(1, 1 + values.shape[1], dtype=torch.uint8)
        exists = layers <= PIECES + self.num_items[indices, None]  # (B, L)
        covers = (values >= self.outline) & exists[:, :, None, None]
        top = (covers * layers[:, None, None]).amax(1, keepdim=True)  # (B, 1, H, W); 0 is the background
        seen = (top.long() - 1).clamp(min=0)
        brightness = self.brightness[indices].gather(1, seen.flatten(1)).reshape(seen.shape)
        painted = (255 * brightness * (SHADE + (1 - SHADE) / 255 * values.gather(1, seen))).round()
        images = torch.where(top > 0, painted, self._background(indices)).to(torch.uint8)
        instances = (top[:, 0].long() - PIECES).clamp(min=0)
        values_of = torch.nn.functional.pad(1 + self.classes[self.number[indices, PIECES:]], (1, 0))  # (B, 1 + most)
        masks = values_of.gather(1, instances.flatten(1)).reshape(instances.shape)
        return Scene(images, instances.to(torch.uint8), masks.to(torch.uint8))

    def items(self, index: int) -> list[Item]:
        """The items of a scene, in the order of painting; item i has the value i + 1 in `instances`."""
        instances = self.compose(torch.tensor([index])).instances
        found = []
        for k in range(int(self.num_items[index])):
            here, number = (index, PIECES + k), int(self.number[index, PIECES + k])
            left, top, side, brightness = (
                float(column[here]) for column in (self.left, self.top, self.side, self.brightness)
            )
            visible = int((instances == k + 1).sum())
            found.append(Item(int(self.classes[number]), number, left, top, side, brightness, visible))
        return found

    def _values(self, indices: Tensor) -> Tensor:
        """v of each piece and item, float32 (B, L, H, W); 0 outside of its window."""
        pictures = self.pictures[self.number[indices]]  # (B, L, n, n)
        side, shown = self.side[indices], self.shown[indices]
        windows = (
            (self.window_y[indices], self.top[indices], self.height),
            (self.window_x[indices], self.left[indices], self.width),
        )
        rows, columns = (
            hats(start, side, length, pictures.shape[-1]) * within(window, shown, length)[..., None]
            for window, start, length in windows
        )
        return (rows @ pictures.double() @ columns.mT).float()

    def _background(self, indices: Tensor) -> Tensor:
        """(B, 1, H, W), whole numbers in float32. The middles of the outermost values are on the canvas's edges."""
        grid, weights = self.grid[indices], []
        for length in (self.height, self.width):
            step = torch.full((len(indices), 1), length / (GRID - 1))
            weights.append(hats(-step / 2, step * GRID, length, GRID))
        rows, columns = weights
        return (rows @ grid.double() @ columns.mT).round().float()

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{len(self)} {self.height} {self.width}".encode())
        for indices in torch.arange(len(self)).split(max(1, CHUNK // (self.height * self.width))):
            digest.update(self.compose(indices).images.numpy().data)
        return digest.hexdigest()


def hats(start: Tensor, extent: Tensor, length: int, count: int) -> Tensor:
    """Weights of linear interpolation from `count` values over [start, start + extent) to the middles of pixels:

        w_pi = max(0, 1 − |u_p − i|),  u_p = (p + ½ − start) count / extent − ½, rounded down to 1/STEPS

    Args:
        start, extent: (B, L), in pixels.

    Returns:
        float64 (B, L, length, count), multiples of 1/STEPS; 0 for a pixel that is more than a value's width outside.
    """
    start, extent = start.double()[..., None], extent.double()[..., None]
    u = (torch.arange(length) + 0.5 - start) * count / extent - 0.5
    u = (u * STEPS).floor() / STEPS
    return (1 - (u[..., None] - torch.arange(count)).abs()).clamp(min=0)


def within(start: Tensor, extent: Tensor, length: int) -> Tensor:
    """Whether the middle of each pixel is in [start, start + extent), bool (B, L, length)."""
    start, extent = start.double()[..., None], extent.double()[..., None]
    middle = torch.arange(length) + 0.5
    return (middle >= start) & (middle < start + extent)


def _between(low: float, high: float, u: Tensor) -> Tensor:
    """low + u (high − low)."""
    return low + u * (high - low)
