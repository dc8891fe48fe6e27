"""The gated PixelCNN: the distribution of each value of an image given the values before it."""

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.image_size import ImageSize
from lightning_diffusion.networks.layers import ClassEmbedding, patch_rows_columns, refuse_parts, zero


class GatedPixelCNN(nn.Module):
    """p(x) = Π_i p(x_i | x_{<i}) over patches, row by row, and within a patch over its rows, columns and channels.

    A vertical stack sees all patches above, a horizontal one those to the left in the same row. The vertical stack
    feeds the horizontal one, so no patch above is hidden from it (no blind spot). Both stacks see only patches before
    their own. Two masked layers then add the values before x_i in the same patch.

    Args:
        in_channels: C of the image.
        image_size: n of a square, or [H, W].
        levels: values of a pixel in each channel, 2 … 256.
        width: features of a patch, and of each of its values, ≥ 1.
        depth: gated layers, ≥ 1.
        kernel_size: odd; a layer reaches kernel_size // 2 patches up and to the left, and to the right above.
        patch_size: p, which divides both sides; larger patches make a faster network with a coarser view.
        num_classes: None for an unconditional network.

    Raises:
        ValueError: a value out of range.

    Ref: Conditional Image Generation with PixelCNN Decoders, §2.1–2.3, Fig. 2; the masked layers: MADE, §3
    """

    def __init__(
        self,
        in_channels: int,
        image_size: ImageSize,
        levels: int = 256,
        width: int = 64,
        depth: int = 5,
        kernel_size: int = 5,
        patch_size: int = 1,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if width < 1 or depth < 1:
            raise ValueError(f"network.width={width}, network.depth={depth}: choose numbers of at least 1")
        if kernel_size < 3 or kernel_size % 2 == 0:
            raise ValueError(f"network.kernel_size={kernel_size}: choose an odd number of at least 3")
        if not 2 <= levels <= 256:
            raise ValueError(f"network.levels={levels}: choose 2 to 256 grey values")
        rows, columns = patch_rows_columns(image_size, patch_size, "network.patch_size")
        K = in_channels * patch_size**2
        self.channels, self.patch_size, self.num_values, self.size = in_channels, patch_size, K, (rows, columns)
        self.levels, self.width, self.num_classes = levels, width, num_classes
        self.vertical_input = Window(K, width, kernel_size)
        self.horizontal_input = RowWindow(K, width, kernel_size)
        self.row = nn.Parameter(0.02 * torch.randn(2, width, rows, 1))  # of each stack
        self.column = nn.Parameter(0.02 * torch.randn(2, width, 1, columns))
        self.layers = nn.ModuleList(GatedLayer(width, kernel_size, last=i == depth - 1) for i in range(depth))
        self.classes = None if num_classes is None else ClassEmbedding(num_classes, depth * 2 * width)
        self.values = ValuesOfPatch(width, K, levels)

    def forward(self, x: Tensor, condition: Condition | None = None) -> Tensor:
        """x (B, C, H, W) in [−1, 1], condition by label or None -> logits of each patch's values, (B, rows, columns, K,
        levels), in the order of `patches`."""
        x, position = self.patches(x).permute(0, 3, 1, 2).to(self.row.dtype), self.position
        above = self.vertical_input(x)
        v, h = above + position[0], self.horizontal_input(_shifted_right(x)) + _shifted_down(above) + position[1]
        for layer, bias in zip(self.gated_layers(), self.class_biases(len(x), condition), strict=True):
            v, h = layer(v, h, bias)
        return self.values(h, x)

    def patches(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, rows, columns, K): the values of each patch, by rows, columns and channels."""
        p = self.patch_size
        x = x.unflatten(2, (-1, p)).unflatten(4, (-1, p))  # (B, C, rows, p, columns, p)
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3)

    def image(self, patches: Tensor) -> Tensor:
        """The inverse of `patches`."""
        p = self.patch_size
        x = patches.unflatten(3, (p, p, self.channels)).permute(0, 5, 1, 3, 2, 4)
        return x.flatten(4).flatten(2, 3)

    def gated_layers(self) -> Iterator["GatedLayer"]:
        return (cast(GatedLayer, layer) for layer in self.layers)

    @property
    def position(self) -> Tensor:
        """What each stack adds for a patch's place, (2, width, rows, columns)."""
        return self.row + self.column

    def class_biases(self, count: int, condition: Condition | None) -> list[Tensor | None]:
        """Of each layer's gate, (B, 2 · width, 1, 1); the last row of the table is for no class."""
        refuse_parts(condition, *([] if self.classes is None else ["label"]))
        if self.classes is None:
            return [None] * len(self.layers)
        return list(self.classes(count, condition)[:, :, None, None].chunk(len(self.layers), dim=1))


class GatedLayer(nn.Module):
    """One gated layer of both stacks; residual connections in both. The last one leaves the vertical stack as it is."""

    def __init__(self, width: int, kernel_size: int, last: bool) -> None:
        super().__init__()
        self.vertical = Window(width, 2 * width, kernel_size)
        self.vertical_out = None if last else zero(nn.Conv2d(width, width, 1))
        self.down = nn.Conv2d(2 * width, 2 * width, 1)
        self.horizontal = RowWindow(width, 2 * width, kernel_size)
        self.horizontal_out = zero(nn.Conv2d(width, width, 1))

    def forward(self, v: Tensor, h: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        above = self.vertical(v)
        h = self.across(h, self.horizontal(h), _shifted_down(self.down(above)), bias)
        return self.along(v, above), h

    def along(self, v: Tensor, above: Tensor) -> Tensor:
        """The vertical stack's next features."""
        return v if self.vertical_out is None else v + self.vertical_out(gated(above))

    def across(self, h: Tensor, left: Tensor, above: Tensor, bias: Tensor | None) -> Tensor:
        """The horizontal stack's next features."""
        total = left + above if bias is None else left + above + bias
        return h + self.horizontal_out(gated(total))


class ValuesOfPatch(nn.Module):
    """Features of a patch and its K values -> logits of each value, which see only the values before it.

    Every value has its own `width` hidden units.
    """

    def __init__(self, width: int, num_values: int, levels: int) -> None:
        super().__init__()
        K, hidden = num_values, num_values * width
        self.shape = (K, levels)
        self.patch = nn.Conv2d(width, hidden, 1)
        self.earlier = MaskedPointwise(K, hidden, K, strict=True)
        self.mix = MaskedPointwise(hidden, hidden, K)
        self.head = zero(nn.Conv2d(hidden, K * levels, 1, groups=K))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """h (B, width, rows, columns), x (B, K, rows, columns) -> (B, rows, columns, K, levels)."""
        hidden = torch.relu(self.patch(torch.relu(h)) + self.earlier(x))
        hidden = torch.relu(hidden + self.mix(hidden))
        return self.head(hidden).permute(0, 2, 3, 1).unflatten(3, self.shape)


def gated(x: Tensor) -> Tensor:
    """tanh(a) ⊙ sigmoid(b): (B, 2F, …) -> (B, F, …)."""
    a, b = x.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)


class Window(nn.Conv2d):
    """Convolution over this row and the rows above, and over columns on both sides."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        self.reach = kernel_size // 2
        super().__init__(in_channels, out_channels, (self.reach + 1, kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.reach, self.reach, self.reach, 0)))

    def last_row(self, rows: Tensor) -> Tensor:
        """The result for the last of the reach + 1 rows (B, C, reach + 1, W)."""
        return super().forward(F.pad(rows, (self.reach, self.reach)))


class RowWindow(nn.Conv2d):
    """Convolution over this column and the ones to its left."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        self.reach = kernel_size // 2
        super().__init__(in_channels, out_channels, (1, self.reach + 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last_columns(F.pad(x, (self.reach, 0)))

    def last_columns(self, x: Tensor) -> Tensor:
        """The results for all columns of (B, C, H, W) but the first `reach`."""
        return super().forward(x)


class MaskedPointwise(nn.Conv2d):
    """1×1 convolution of K groups of channels, each of which sees only groups up to its own.

    strict: only groups before its own.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int, strict: bool = False) -> None:
        super().__init__(in_channels, out_channels, 1)
        of_input = torch.arange(in_channels) * groups // in_channels
        of_output = torch.arange(out_channels) * groups // out_channels
        mask = (of_output[:, None] >= of_input + strict).float()[:, :, None, None]
        self.register_buffer("mask", mask, persistent=False)
        with torch.no_grad():  # the default scale for the inputs that are seen
            self.weight.mul_(mask * (in_channels / mask.sum(1, keepdim=True).clamp(min=1)).sqrt())

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)

    mask: Tensor


def _shifted_down(x: Tensor) -> Tensor:
    """Row i takes what row i − 1 had; row 0 takes zeros."""
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1]


def _shifted_right(x: Tensor) -> Tensor:
    """Column j takes what column j − 1 had; column 0 takes zeros."""
    return F.pad(x, (1, 0))[..., :-1]
