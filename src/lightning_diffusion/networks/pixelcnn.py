"""The gated PixelCNN: each pixel's distribution given the pixels before it, in raster order."""

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.image_size import ImageSize, height_width
from lightning_diffusion.networks.layers import ClassEmbedding, refuse_parts, zero


class GatedPixelCNN(nn.Module):
    """p(x) = Π_i p(x_i | x_{<i}) over rows, then columns, then channels.

    A vertical stack sees all rows above, a horizontal one the current row to the left. The vertical stack feeds the
    horizontal one, so no pixel above is hidden from it (no blind spot). The features of a pixel form one group for each
    of its channels: group c sees the channels before c of its own pixel.

    Args:
        in_channels: C of the image.
        image_size: n of a square, or [H, W].
        levels: values of a pixel in each channel, 2 … 256.
        width: features of a pixel; in_channels divides it.
        depth: gated layers, ≥ 1.
        kernel_size: odd; a layer reaches kernel_size // 2 rows up and columns to the left, and to the right above.
        num_classes: None for an unconditional network.

    Raises:
        ValueError: a value out of range.

    Ref: Conditional Image Generation with PixelCNN Decoders, §2.1–2.3, Fig. 2
    """

    def __init__(
        self,
        in_channels: int,
        image_size: ImageSize,
        levels: int = 256,
        width: int = 64,
        depth: int = 7,
        kernel_size: int = 5,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if width < 1 or width % in_channels:
            raise ValueError(
                f"network.width={width} and data.channels={in_channels}: choose a multiple of the number of channels"
            )
        if depth < 1 or kernel_size < 3 or kernel_size % 2 == 0:
            raise ValueError(
                f"network.depth={depth}, network.kernel_size={kernel_size}: choose depth >= 1, an odd kernel_size >= 3"
            )
        if not 2 <= levels <= 256:
            raise ValueError(f"network.levels={levels}: choose 2 to 256 grey values")
        C, (H, W) = in_channels, height_width(image_size)
        self.in_channels, self.size, self.levels, self.width = C, (H, W), levels, width
        self.num_classes = num_classes
        self.vertical_input = Window(C, width, kernel_size)
        self.horizontal_input = RowWindow(C, width, kernel_size, C, strict=True)
        self.row = nn.Parameter(0.02 * torch.randn(2, width, H, 1))  # of each stack
        self.column = nn.Parameter(0.02 * torch.randn(2, width, 1, W))
        self.layers = nn.ModuleList(GatedLayer(width, kernel_size, C) for _ in range(depth))
        self.classes = None if num_classes is None else ClassEmbedding(num_classes, depth * 2 * width)
        self.hidden = GroupedPointwise(width, width, C)
        self.head = zero(GroupedPointwise(width, levels * C, C))

    def forward(self, x: Tensor, condition: Condition | None = None) -> Tensor:
        """x (B, C, H, W) in [−1, 1], condition by label or None -> logits (B, levels, C, H, W)."""
        x, position = x.to(self.row.dtype), self.position
        above = self.vertical_input(x)
        v, h = above + position[0], self.horizontal_input(x) + _shifted_down(above) + position[1]
        for layer, bias in zip(self.gated_layers(), self.class_biases(len(x), condition), strict=True):
            v, h = layer(v, h, bias)
        return self.logits(h)

    def gated_layers(self) -> Iterator["GatedLayer"]:
        return (cast(GatedLayer, layer) for layer in self.layers)

    @property
    def position(self) -> Tensor:
        """What each stack adds for a pixel's place, (2, width, H, W)."""
        return self.row + self.column

    def logits(self, h: Tensor) -> Tensor:
        """Features (B, width, H, W) -> (B, levels, C, H, W)."""
        logits = self.head(torch.relu(self.hidden(torch.relu(h))))
        return logits.unflatten(1, (self.in_channels, self.levels)).transpose(1, 2)

    def class_biases(self, count: int, condition: Condition | None) -> list[Tensor | None]:
        """Of each layer's gate, (B, 2 · width, 1, 1); the last row of the table stands for no class."""
        refuse_parts(condition, *([] if self.classes is None else ["label"]))
        if self.classes is None:
            return [None] * len(self.layers)
        return list(self.classes(count, condition)[:, :, None, None].chunk(len(self.layers), dim=1))


class GatedLayer(nn.Module):
    """One gated layer of both stacks; residual connections in both."""

    def __init__(self, width: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.vertical = Window(width, 2 * width, kernel_size)
        self.vertical_out = zero(nn.Conv2d(width, width, 1))
        self.down = nn.Conv2d(2 * width, 2 * width, 1)
        self.horizontal = RowWindow(width, 2 * width, kernel_size, groups)
        self.horizontal_out = zero(GroupedPointwise(width, width, groups))
        self.groups = groups

    def forward(self, v: Tensor, h: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        above = self.vertical(v)
        h = self.across(h, self.horizontal(h), _shifted_down(self.down(above)), bias)
        return self.along(v, above), h

    def along(self, v: Tensor, above: Tensor) -> Tensor:
        """The vertical stack's next features."""
        return v + self.vertical_out(gated(above, 1))

    def across(self, h: Tensor, left: Tensor, above: Tensor, bias: Tensor | None) -> Tensor:
        """The horizontal stack's next features."""
        total = left + above if bias is None else left + above + bias
        return h + self.horizontal_out(gated(total, self.groups))


def gated(x: Tensor, groups: int) -> Tensor:
    """tanh(a) ⊙ sigmoid(b), where each group of channels holds its own a and b: (B, 2F, …) -> (B, F, …)."""
    a, b = x.unflatten(1, (groups, 2, -1)).unbind(2)
    return (torch.tanh(a) * torch.sigmoid(b)).flatten(1, 2)


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
    """Convolution over this pixel and the ones to its left, whose channels see only groups up to their own here.

    strict: only groups before their own (mask A).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, groups: int, strict: bool = False
    ) -> None:
        self.reach = kernel_size // 2
        super().__init__(in_channels, out_channels, (1, self.reach + 1))
        mask = torch.ones_like(self.weight)
        mask[:, :, 0, -1] = group_mask(in_channels, out_channels, groups, strict)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_columns(F.pad(x, (self.reach, 0)))

    def last_columns(self, x: Tensor) -> Tensor:
        """The results for all columns of (B, C, H, W) but the first `reach`."""
        return self._conv_forward(x, self.weight * self.mask, self.bias)

    mask: Tensor


class GroupedPointwise(nn.Conv2d):
    """1×1 convolution whose channels see only groups up to their own (mask B)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__(in_channels, out_channels, 1)
        mask = group_mask(in_channels, out_channels, groups)[:, :, None, None]
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)

    mask: Tensor


def group_mask(in_channels: int, out_channels: int, groups: int, strict: bool = False) -> Tensor:
    """1 where an output's group is not before the input's, (out, in); strict: where it comes after."""
    of_input = torch.arange(in_channels) * groups // in_channels
    of_output = torch.arange(out_channels) * groups // out_channels
    return (of_output[:, None] >= of_input + strict).float()


def _shifted_down(x: Tensor) -> Tensor:
    """Row i takes what row i − 1 had; row 0 takes zeros."""
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1]


class PixelByPixel:
    """The network's logits at one pixel after the other, in raster order, equal to those of `forward` up to rounding.
    Features of earlier pixels are kept: an image costs about as much as one forward pass.

    Args:
        network: the network.
        count: B images at once.
        condition: of length B, or None.
    """

    def __init__(self, network: GatedPixelCNN, count: int, condition: Condition | None) -> None:
        self.network, self.biases, self.position = network, network.class_biases(count, condition), network.position
        (_, W), width, reach = network.size, network.width, network.vertical_input.reach
        self.reach, self.row = reach, -1

        def zeros(channels: int, *size: int) -> Tensor:
            return self.position.new_zeros(count, channels, *size)

        self._rows = [zeros(network.in_channels, reach + 1, W), *(zeros(width, reach + 1, W) for _ in network.layers)]
        self._above = [zeros(width, 1, W), *(zeros(2 * width, 1, W) for _ in network.layers)]
        self._left = [zeros(width, 1, reach + W) for _ in network.layers]

    def begin_row(self, row: Tensor | None) -> None:
        """Moves on to the next row.

        Args:
            row: of the image, now complete, (B, C, 1, W); None before the first.
        """
        network, self.row = self.network, self.row + 1
        if row is None:
            return
        above = self._above[0] = network.vertical_input.last_row(self._push(0, row))
        v = above + self.position[0, :, self.row - 1 : self.row]
        for number, layer in enumerate(network.gated_layers(), start=1):
            above = layer.vertical.last_row(self._push(number, v))
            self._above[number], v = layer.down(above), layer.along(v, above)

    def _push(self, number: int, row: Tensor) -> Tensor:
        self._rows[number] = torch.cat([self._rows[number][:, :, 1:], row], dim=2)
        return self._rows[number]

    def logits(self, row: Tensor, column: int) -> Tensor:
        """row (B, C, 1, W), complete up to this pixel -> its logits, (B, levels, C); those of channel c need the
        channels before c of the pixel itself."""
        network, j, k = self.network, column, column + self.reach + 1
        here = slice(j, j + 1)
        left = network.horizontal_input.last_columns(F.pad(row, (self.reach, 0))[..., j:k])
        h = left + self._above[0][..., here] + self.position[1, :, self.row : self.row + 1, here]
        for number, (layer, bias) in enumerate(zip(network.gated_layers(), self.biases, strict=True)):
            self._left[number][..., k - 1 : k] = h
            left = layer.horizontal.last_columns(self._left[number][..., j:k])
            h = layer.across(h, left, self._above[number + 1][..., here], bias)
        return network.logits(h)[..., 0, 0]
