"""A generator and a discriminator of residual blocks, without normalization layers.

Ref: The GAN is dead; long live the GAN! A Modern GAN Baseline, §3
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.image_size import ImageSize
from lightning_diffusion.networks.layers import ClassEmbedding, halved_sides, refuse_parts, zero

SLOPE = 0.2  # of the leaky ReLU for negative inputs
CONVOLUTIONS = 2  # of a residual block


class ResidualGenerator(nn.Module):
    """A latent vector and a class -> an image, from the smallest sides up, doubling them by bilinear interpolation.

    The first features are W z + b + e(class).

    Args:
        in_channels: C of the image.
        image_size: n of a square, or [H, W].
        latent_dim: d of z, ≥ 1.
        width: channels at full size, ≥ 1; doubled at every step down.
        depth: number of times that the sides are doubled, ≥ 1.
        patch_size: p; the last features are p×p pixels each, which makes a faster network.
        num_classes: None for an unconditional network.

    Raises:
        ValueError: a value out of range, or an image too small for this depth.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: ImageSize,
        latent_dim: int = 32,
        width: int = 32,
        depth: int = 2,
        patch_size: int = 1,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if min(latent_dim, width, depth) < 1:
            raise ValueError(
                f"network.latent_dim={latent_dim}, width={width}, depth={depth}: choose numbers of at least 1"
            )
        sides, widths = halved_sides(image_size, depth, patch_size), [width * 2**k for k in range(depth + 1)]
        self.latent_dim, self.patch_size, self.num_classes = latent_dim, patch_size, num_classes
        self.bottom = (widths[-1], *sides[-1])
        flat = widths[-1] * sides[-1][0] * sides[-1][1]
        self.open = nn.Linear(latent_dim, flat)
        self.classes = None if num_classes is None else ClassEmbedding(num_classes, flat, std=flat**-0.5)
        self.levels = nn.ModuleList(
            Level(widths[k + 1], widths[k], sides[k], depth + 1) for k in reversed(range(depth))
        )
        self.last = Block(width, depth + 1)
        self.head = nn.Conv2d(width, in_channels * patch_size**2, 3, padding=1)

    def forward(self, z: Tensor, condition: Condition | None = None) -> Tensor:
        """z (B, d), condition by label or None -> (B, C, H, W); images are in [−1, 1]."""
        refuse_parts(condition, *([] if self.classes is None else ["label"]))
        h = self.open(z.to(self.open.weight.dtype))
        if self.classes is not None:
            h = h + self.classes(len(z), condition)
        h = h.unflatten(1, self.bottom)
        for level in self.levels:
            h = level(h)
        return F.pixel_shuffle(self.head(F.leaky_relu(self.last(h), SLOPE)), self.patch_size)


class ResidualDiscriminator(nn.Module):
    """An image and a class -> a number, higher for real images: D(x, y) = w · φ(x) + b + e(y) · φ(x).

    Args:
        in_channels: C of the image.
        image_size: n of a square, or [H, W].
        width: channels at full size, ≥ 1; doubled at every step down.
        depth: number of times that the sides are halved, by bilinear interpolation, ≥ 1.
        patch_size: p; the first convolution sees p×p pixels as channels, which makes a faster network.
        num_classes: None for an unconditional network.

    Raises:
        ValueError: a value out of range, or an image too small for this depth.

    Ref: cGANs with Projection Discriminator, §3
    """

    def __init__(
        self,
        in_channels: int,
        image_size: ImageSize,
        width: int = 32,
        depth: int = 2,
        patch_size: int = 1,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if min(width, depth) < 1:
            raise ValueError(f"discriminator.width={width}, depth={depth}: choose numbers of at least 1")
        sides = halved_sides(image_size, depth, patch_size, "discriminator")
        widths = [width * 2**k for k in range(depth + 1)]
        flat = widths[-1] * sides[-1][0] * sides[-1][1]
        self.patch_size, self.num_classes = patch_size, num_classes
        self.first = nn.Conv2d(in_channels * patch_size**2, width, 3, padding=1)
        self.levels = nn.ModuleList(Level(widths[k], widths[k + 1], sides[k + 1], depth + 1) for k in range(depth))
        self.last = Block(widths[-1], depth + 1)
        self.head = nn.Linear(flat, 1)
        self.classes = None if num_classes is None else ClassEmbedding(num_classes, flat, std=flat**-0.5)

    def forward(self, x: Tensor, condition: Condition | None = None) -> Tensor:
        """x (B, C, H, W), condition by label or None -> float32 (B,)."""
        refuse_parts(condition, *([] if self.classes is None else ["label"]))
        h = self.first(F.pixel_unshuffle(x.to(self.first.weight.dtype), self.patch_size))
        for level in self.levels:
            h = level(h)
        features = F.leaky_relu(self.last(h), SLOPE).flatten(1)
        score = self.head(features)[:, 0].float()
        if self.classes is None:
            return score
        return score + (self.classes(len(x), condition) * features).float().sum(1)


class Level(nn.Module):
    """A residual block, then bilinear interpolation to `size` and a 1×1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, size: tuple[int, int], num_blocks: int) -> None:
        super().__init__()
        self.size, self.block = size, Block(in_channels, num_blocks)
        self.resize = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.resize(F.interpolate(self.block(x), size=self.size, mode="bilinear"))


class Block(nn.Module):
    """x + conv(σ(conv(σ(x)))), σ the leaky ReLU. It starts as the identity.

    The last convolution starts at 0, the others at He's scale times L^(−1/(2m − 2)), for L blocks of m convolutions.
    This keeps the first updates of the whole network at the size of a single block's, without normalization.

    Args:
        num_blocks: L, of the network.

    Ref: Fixup Initialization, §3
    """

    def __init__(self, channels: int, num_blocks: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.out = zero(nn.Conv2d(channels, channels, 3, padding=1))
        nn.init.kaiming_normal_(self.conv.weight, a=SLOPE)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]  # it has one
        with torch.no_grad():
            self.conv.weight.mul_(num_blocks ** (-1 / (2 * CONVOLUTIONS - 2)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(F.leaky_relu(self.conv(F.leaky_relu(x, SLOPE)), SLOPE))
