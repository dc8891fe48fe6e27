"""Scenes of several items on a cluttered background, computed instead of read, with exact masks."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_diffusion.codecs.image_size import height_width, typed
from lightning_diffusion.data.captions import CLASSES, Description, Vocabulary, is_held_out_pair, relation
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

    Training scenes contain training items only, held-out scenes held-out items only. A scene of exactly two items has a
    caption: the class of the item at the bottom, its relation to the other one, and the other one's class.

    Args:
        items: "digits" of scikit-learn, 8×8, or "fashion_mnist", 28×28.
        root: folder of Fashion-MNIST's files; None for digits.
        image_seed: of the scenes, 0 … 2³¹ − 1; `seed` is that of their order.
        mask_classes: values of a mask: 0 is the background, 1 + k an item of class k; 11.
        num_attributes: attribute k is 1 if an item of class k is visible, and 0 otherwise; 10.
        num_items: least and largest number of items in a scene, 1 … 4.
        overlap: false keeps the squares of items apart, in scenes of at most two.
        hold_out_pairs: no training scene contains the two classes of one of ten pairs, see `is_held_out_pair`; every
            held-out scene contains such a pair.
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
        num_attributes: int = MASK_CLASSES - 1,
        num_items: Sequence[int] = ITEMS,
        overlap: bool = True,
        hold_out_pairs: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if self.channels != 1:
            raise ValueError(f"data.channels={self.channels}: scenes are grey; choose data.channels=1")
        if self.num_classes is not None:
            raise ValueError(f"data.num_classes={self.num_classes}: a scene has no class; choose data.num_classes=null")
        if mask_classes != MASK_CLASSES:
            raise ValueError(f"data.mask_classes={mask_classes}: scenes have {MASK_CLASSES}; leave it out")
        if num_attributes != MASK_CLASSES - 1:
            raise ValueError(f"data.num_attributes={num_attributes}: scenes have {MASK_CLASSES - 1}; leave it out")
        if min(height_width(self.image_size)) < MIN_SIDE:
            raise ValueError(f"data.image_size={typed(self.image_size)}: scenes need sides of at least {MIN_SIDE}")
        if not 0 <= image_seed <= MAX_SEED:
            raise ValueError(f"data.image_seed={image_seed}: choose a whole number from 0 to {MAX_SEED}")
        if items == "fashion_mnist" and root is None:
            raise ValueError("data.items=fashion_mnist: name the folder of its files with data.root=DIR")
        if items == "digits" and root is not None:
            raise ValueError(f"data.root={root}: the digits need no files; leave it out, or choose another data.items")
        self.items, self.root, self.image_seed, self.mask_classes = items, root, image_seed, mask_classes
        self.num_attributes, self.num_items = num_attributes, _checked_items(num_items, overlap, hold_out_pairs)
        self.overlap, self.hold_out_pairs = overlap, hold_out_pairs
        self.vocabulary = Vocabulary(CLASSES[items]) if self.num_items == (2, 2) else None

    @cached_property
    def _source(self) -> ImageDataModule:
        """The data set of the items."""
        if self.root is None:
            return Digits(channels=1, image_size=8, num_classes=10, batch_size=1)
        return MNIST(self.root, "FashionMNIST", channels=1, image_size=28, num_classes=10, batch_size=1)

    def fetch(self) -> None:
        self._source.fetch()

    def read(self, split: Split) -> ImageDataset:
        pairs = (split == "val") if self.hold_out_pairs else None
        stream = 2 * self.image_seed + (split == "val")
        return self.made(split, COUNT[split], stream, self.num_items, self.overlap, pairs)

    def made(
        self, split: Split, count: int, stream: int, num_items: tuple[int, int], overlap: bool, pairs: bool | None
    ) -> "SceneImages":
        """Scenes of the items of a split, with captions if each has two items; see `SceneImages`."""
        items = self._source.read(split)
        assert isinstance(items, InMemory)
        _, height, width = self.shape
        vocabulary = Vocabulary(CLASSES[self.items]) if num_items == (2, 2) else None
        outline = OUTLINE[self.items]
        return SceneImages(count, height, width, items, outline, stream, num_items, overlap, pairs, vocabulary)


def _checked_items(num_items: Sequence[int], overlap: bool, hold_out_pairs: bool) -> tuple[int, int]:
    """(least, largest) number of items in a scene."""
    given = f"data.num_items={typed(list(num_items))}"
    if len(num_items) != 2 or not 1 <= num_items[0] <= num_items[1] <= ITEMS[1]:
        raise ValueError(f"{given}: choose the least and the largest number, 1 to {ITEMS[1]}, such as [2,2]")
    if not overlap and num_items[1] > 2:
        raise ValueError(f"{given} and data.overlap=false: at most two items are kept apart; choose [2,2], or [1,2]")
    if hold_out_pairs and num_items[0] < 2:
        raise ValueError(f"{given} and data.hold_out_pairs=true: a pair needs two items; choose [2,2], or more")
    return num_items[0], num_items[1]


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
        items        `num_items`, each whole and within the canvas

    An item has the value v(p) ∈ [0, 255] at pixel p of its square, interpolated bilinearly. It is visible where v(p) ≥
    `outline`, unless a later item covers it. Its brightness there is b (SHADE + (1 − SHADE) v(p) / 255). Pieces are
    painted in the same way, but belong to the background: neither brightness nor strokes alone tell items from it.

    An interpolated value is a whole number of 1/256, which float64 and float32 represent exactly, whatever the order of
    the sum. A scene is therefore the same bits in every batch and on every machine.

    The arguments from num_items leave out rows of the table that do not fit. Scene i is then row i of the others.

    Args:
        items: square images with classes.
        outline: the least value of an item's pixels, 1 … 255.
        stream: seed of the table, below 2³².
        num_items: least and largest number of items in a scene.
        overlap: false keeps the squares of two items apart.
        pairs: whether each scene contains a pair of classes that is held out (true) or none does (false); None allows
            both.
        vocabulary: of the captions, if every scene has two items; None for scenes without captions.

    Ref: Recurrent Models of Visual Attention, Mnih et al. 2014, §4.1 (clutter from pieces of other items)
    """

    def __init__(
        self,
        count: int,
        height: int,
        width: int,
        items: InMemory,
        outline: int,
        stream: int,
        num_items: tuple[int, int] = ITEMS,
        overlap: bool = True,
        pairs: bool | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        assert items.labels is not None
        self.height, self.width, self.outline, self.vocabulary = height, width, outline, vocabulary
        self.pictures, self.classes = items.images[:, 0], items.labels
        columns = (1, GRID * GRID, 5 * (PIECES + ITEMS[1]), 2 * PIECES)
        generator, rows = torch.Generator().manual_seed(stream), torch.zeros(0, sum(columns))
        while len(rows) < count:
            table = torch.rand(count, sum(columns), generator=generator)
            self._lay_out(table.split(columns, dim=1), num_items)
            fits = torch.ones(count, dtype=torch.bool) if overlap else self._apart()
            rows = torch.cat([rows, table[fits if pairs is None else fits & (self._holds_a_pair() == pairs)]])
        self._lay_out(rows[:count].split(columns, dim=1), num_items)

    def _lay_out(self, columns: Sequence[Tensor], num_items: tuple[int, int]) -> None:
        """Read the scenes from the columns of their rows in the table."""
        (number, grid, layers, cuts), (least, largest) = columns, num_items
        most, shorter, N, count = ITEMS[1], min(self.height, self.width), len(self.classes), len(number)
        self.num_items = least + (number[:, 0] * (largest + 1 - least)).long()
        self.grid = (grid * (255 * BACKGROUND)).long().reshape(count, 1, GRID, GRID)
        pick, size, x, y, brightness = layers.reshape(count, PIECES + most, 5).unbind(2)  # (N, L) each
        self.number, self.side = (pick * N).long().clamp(max=N - 1), _between(*SIZE, size) * shorter
        self.brightness = _between(*BRIGHTNESS, brightness)
        self.shown = torch.cat([PIECE * self.side[:, :PIECES], self.side[:, PIECES:]], dim=1)  # side that is visible
        cut = torch.cat([cuts, torch.zeros(count, 2 * most)], dim=1).reshape(count, PIECES + most, 2)
        # the left and upper edge of the part that is visible
        self.window_x, self.window_y = x * (self.width - self.shown), y * (self.height - self.shown)
        hidden = self.side - self.shown
        self.left, self.top = self.window_x - cut[..., 0] * hidden, self.window_y - cut[..., 1] * hidden

    def _apart(self) -> Tensor:
        """Whether the squares of the first two items are apart, or there is only one, (N,)."""
        edges = torch.stack([self.left, self.top])[..., PIECES : PIECES + 2]  # (2, N, 2)
        (one, other), side = edges.unbind(-1), self.side[:, PIECES : PIECES + 2]
        apart = (one + side[:, 0] <= other) | (other + side[:, 1] <= one)
        return apart.any(dim=0) | (self.num_items == 1)

    def _holds_a_pair(self) -> Tensor:
        """Whether two items of a scene are a pair of classes that is held out, (N,)."""
        classes = self.classes[self.number[:, PIECES:]]  # (N, most)
        exists = torch.arange(classes.shape[1]) < self.num_items[:, None]
        pairs = is_held_out_pair(classes[:, :, None], classes[:, None]) & exists[:, :, None] & exists[:, None]
        return pairs.flatten(1).any(dim=1)

    def __len__(self) -> int:
        return len(self.num_items)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, None]:
        return self.compose(indices).images, None

    def sample(self, indices: Tensor) -> Sample:
        scene = self.compose(indices)
        seen = torch.zeros(len(indices), MASK_CLASSES).scatter_(1, scene.masks.flatten(1).long(), 1)
        offered = Description(seen[:, 1:], self.captions(indices))
        return Sample(scene.images, None, scene.masks, scene.instances, description=offered)

    def captions(self, indices: Tensor) -> Tensor | None:
        """The words of the scenes' captions, int64 (B, 3), or None without captions."""
        if self.vocabulary is None:
            return None
        first, second = self.classes[self.number[indices, PIECES : PIECES + 2]].unbind(1)
        half = self.side[indices] / 2
        x, y = (edge[indices] + half for edge in (self.left, self.top))
        (dx, dy) = (centre[:, PIECES + 1] - centre[:, PIECES] for centre in (x, y))
        return self.vocabulary.of(first, relation(dx, dy), second)

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
