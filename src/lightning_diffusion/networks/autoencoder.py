"""A convolutional encoder and decoder with a latent vector between them."""

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.image_size import ImageSize
from lightning_diffusion.networks.layers import ClassEmbedding, halved_sides, refuse_parts


class ConvAutoencoder(nn.Module):
    """Strided convolutions to a vector of `latent_dim` moments, and upsampling convolutions back.

    The class, where there are classes, is added to the features of both halves.

    Args:
        in_channels: C of the image.
        image_size: n of a square, or [H, W].
        latent_dim: d, ≥ 1.
        width: channels of the first level, ≥ 1; doubled at every step down.
        depth: steps down, ≥ 1; each halves the sides.
        outputs: of the decoder for each value of the image, ≥ 1.
        num_classes: None for an unconditional network.

    Raises:
        ValueError: a value out of range, or an image too small for so many steps down.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: ImageSize,
        latent_dim: int = 16,
        width: int = 32,
        depth: int = 2,
        outputs: int = 1,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if min(latent_dim, width, depth, outputs) < 1:
            raise ValueError(
                f"network.latent_dim={latent_dim}, width={width}, depth={depth}, outputs={outputs}: choose numbers "
                "of at least 1"
            )
        sides = halved_sides(image_size, depth)
        widths = [width * 2**k for k in range(depth + 1)]
        self.latent_dim, self.num_classes = latent_dim, num_classes
        self.bottom = (widths[-1], *sides[-1])
        flat = widths[-1] * sides[-1][0] * sides[-1][1]
        self.classes = None if num_classes is None else ClassEmbedding(num_classes, 2 * flat)
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.down = nn.ModuleList(Down(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.moments = nn.Linear(flat, 2 * latent_dim)
        self.open = nn.Linear(latent_dim, flat)
        self.up = nn.ModuleList(
            Up(b, a, size) for a, b, size in zip(widths[-2::-1], widths[:0:-1], sides[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(width, outputs * in_channels, 3, padding=1)

    def forward(self, x: Tensor, eps: Tensor, condition: Condition | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, C, H, W), ε (B, d) -> mean and log variance of q(z|x), (B, d) each, and `decode` of z = μ + σ ε."""
        mean, log_variance = self.encode(x, condition)
        return mean, log_variance, self.decode(mean + (log_variance / 2).exp() * eps, condition)

    def encode(self, x: Tensor, condition: Condition | None) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) -> mean and log variance, float32 (B, d) each."""
        h = self.first(x.to(self.first.weight.dtype))
        for down in self.down:
            h = down(h)
        h = F.silu(h.flatten(1) + self._class(len(x), condition, half=0))
        mean, log_variance = self.moments(h).float().chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Tensor, condition: Condition | None) -> Tensor:
        """z (B, d) -> (B, outputs · C, H, W)."""
        h = self.open(z.to(self.open.weight.dtype)) + self._class(len(z), condition, half=1)
        h = h.unflatten(1, self.bottom)
        for up in self.up:
            h = up(h)
        return self.head(F.silu(h))

    def _class(self, count: int, condition: Condition | None, half: int) -> Tensor:
        """What the class adds to the features of the encoder (half 0) or the decoder (half 1)."""
        refuse_parts(condition, *([] if self.classes is None else ["label"]))
        if self.classes is None:
            return self.open.weight.new_zeros(())
        return self.classes(count, condition).chunk(2, dim=1)[half]


class Down(nn.Module):
    """SiLU and a convolution that halves the sides, rounded up, then a residual convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.halve = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.conv = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.halve(F.silu(x))
        return x + self.conv(F.silu(x))


class Up(nn.Module):
    """A residual convolution, then nearest upsampling to `size` and a convolution."""

    def __init__(self, in_channels: int, out_channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.conv = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.widen = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.conv(F.silu(x))
        return self.widen(F.interpolate(F.silu(x), size=self.size))
