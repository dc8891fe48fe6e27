"""Drawing from a gated PixelCNN patch by patch, with the features of earlier patches kept."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.networks.pixelcnn import GatedPixelCNN


class PatchByPatch:
    """The network's features and logits for one patch after the other, row by row, equal to those of `forward` up to
    rounding. An image costs about as much as one forward pass.

    Args:
        network: the network.
        count: B images at once.
        condition: of length B, or None.
    """

    def __init__(self, network: GatedPixelCNN, count: int, condition: Condition | None) -> None:
        self.network, self.biases, self.position = network, network.class_biases(count, condition), network.position
        (_, columns), width, reach = network.size, network.width, network.vertical_input.reach
        self.reach, self.row = reach, -1

        def zeros(channels: int, *size: int) -> Tensor:
            return self.position.new_zeros(count, channels, *size)

        inputs = [zeros(network.num_values, reach + 1, columns)]
        self._rows = [*inputs, *(zeros(width, reach + 1, columns) for _ in network.layers)]
        self._above = [zeros(width, 1, columns), *(zeros(2 * width, 1, columns) for _ in network.layers)]
        self._left = [zeros(width, 1, reach + columns) for _ in network.layers]

    def begin_row(self, row: Tensor | None) -> None:
        """Move on to the next row of patches.

        Args:
            row: the values of the row before, (B, K, 1, columns); None before the first.
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

    def features(self, row: Tensor, column: int) -> Tensor:
        """row (B, K, 1, columns), complete before this patch -> the patch's features, (B, width, 1, 1)."""
        network, j, k = self.network, column, column + self.reach + 1
        here = slice(j, j + 1)
        left = network.horizontal_input.last_columns(F.pad(row, (self.reach + 1, 0))[..., j:k])
        h = left + self._above[0][..., here] + self.position[1, :, self.row : self.row + 1, here]
        for number, (layer, bias) in enumerate(zip(network.gated_layers(), self.biases, strict=True)):
            self._left[number][..., k - 1 : k] = h
            left = layer.horizontal.last_columns(self._left[number][..., j:k])
            h = layer.across(h, left, self._above[number + 1][..., here], bias)
        return h

    def logits(self, h: Tensor, patch: Tensor) -> Tensor:
        """The patch's features and its values (B, K, 1, 1) -> logits of the values, (B, K, levels). Those of value k
        need only the values before k."""
        logits: Tensor = self.network.values(h, patch)
        return logits[:, 0, 0]
