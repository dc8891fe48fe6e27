"""Autoregressive models as a family: p(x) = Π_i p(x_i | x_{<i}), an exact likelihood, drawn pixel by pixel."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.image_size import ImageSize, height_width
from lightning_diffusion.codecs.pixels import to_model
from lightning_diffusion.diffusion.noise import IndexedNoise
from lightning_diffusion.models.contracts import Drawn, Generator, Likelihood, Model, OnStep, no_report
from lightning_diffusion.networks.patch_by_patch import PatchByPatch
from lightning_diffusion.networks.pixelcnn import GatedPixelCNN
from lightning_diffusion.networks.summary import Inputs, noisy_images


class Autoregressive(Model, Generator, Likelihood):
    """A network that gives the distribution of each pixel from the pixels before it.

    Args:
        network: with the weights; its `levels` are the grey values, 256 for the images as they are. Fewer levels
            quantize the images first, and the likelihood is that of the quantized images.
        channels, num_classes: of the images.
        image_size: n of squares, or [H, W].
    """

    exact = True

    def __init__(
        self, network: GatedPixelCNN, channels: int, image_size: ImageSize, num_classes: int | None = None
    ) -> None:
        super().__init__()
        self.pixels, self.shape, self.num_classes = network, (channels, *height_width(image_size)), num_classes

    @property
    def network(self) -> nn.Module:
        return self.pixels

    def example(self, count: int, device: str) -> Inputs:
        x, _, condition = noisy_images(self.shape, self.num_classes)(count, device)
        return x, condition

    @property
    def num_steps(self) -> int:
        return self.pixels.size[0]  # rows of patches

    def levels(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> int64 level of each pixel, 0 … levels − 1."""
        return images.long() * self.pixels.levels // 256

    def images(self, levels: Tensor) -> Tensor:
        """int64 levels -> uint8: the darkest is 0, the brightest 255."""
        return (levels * 255 // (self.pixels.levels - 1)).to(torch.uint8)

    def log_probability(self, images: Tensor, condition: Condition | None) -> Tensor:
        """log p(x_i | x_{<i}) of each pixel of uint8 images, nats, float32 (B, C, H, W)."""
        levels = self.levels(images)
        logits = self.pixels(to_model(self.images(levels)), condition).float()
        values = self.pixels.patches(levels)
        nats = nn.functional.cross_entropy(logits.flatten(0, -2), values.flatten(), reduction="none")
        return self.pixels.image(-nats.view_as(values))

    @torch.no_grad()
    def bits_per_dim(self, images: Tensor, condition: Condition | None, indices: range, seed: int) -> Tensor:
        return self.log_probability(images, condition).flatten(1).mean(1) / -math.log(2)

    def draw(
        self, indices: Sequence[int], condition: Condition | None, seed: int, on_step: OnStep = no_report
    ) -> Drawn:
        levels = torch.empty(0)
        for levels in self._rows(indices, condition, seed):  # noqa: B007  # the last state is the sample
            on_step()
        return Drawn(self.images(levels).cpu(), len(indices) * math.prod(self.shape))

    def trajectory(self, indices: Sequence[int], condition: Condition | None, seed: int) -> Iterator[Tensor]:
        """Images whose rows fill in from the top; the rest is grey."""
        rest = torch.full((len(indices), *self.shape), 128, dtype=torch.uint8)
        yield rest
        for number, levels in enumerate(self._rows(indices, condition, seed), start=1):
            filled, row = self.images(levels).cpu(), number * self.pixels.patch_size
            yield torch.cat([filled[:, :, :row], rest[:, :, row:]], dim=2)

    @torch.inference_mode()
    def _rows(self, indices: Sequence[int], condition: Condition | None, seed: int) -> Iterator[Tensor]:
        """The levels (B, C, H, W) after each row of patches. One uniform number decides each value: x = F⁻¹(u),
        u = Φ(z)."""
        network, (rows, columns) = self.pixels, self.pixels.size
        z = IndexedNoise(seed, indices, self.shape, self.device)()
        u = torch.special.ndtr(network.patches(z).double())  # (B, rows, columns, K)
        condition = None if condition is None else condition.to(self.device)
        cached, like = PatchByPatch(network, len(indices), condition), network.row
        levels = torch.zeros(u.shape, dtype=torch.long, device=self.device)
        row = None
        for i in range(rows):
            cached.begin_row(row)
            row = like.new_zeros(len(indices), network.num_values, 1, columns)
            for j in range(columns):
                h, patch = cached.features(row, j), row[..., j : j + 1]
                for k in range(network.num_values):
                    logits = cached.logits(h, patch)[:, k].double()
                    below = logits.softmax(1).cumsum(1)[:, :-1] <= u[:, i, j, k, None]
                    levels[:, i, j, k] = below.sum(1)
                    patch[:, k, 0, 0] = to_model(self.images(levels[:, i, j, k]))
            yield network.image(levels)
