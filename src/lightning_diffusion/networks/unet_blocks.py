"""The blocks of a U-Net: residual blocks, self-attention and changes of resolution."""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_diffusion.networks.layers import attend, zero
from lightning_diffusion.networks.norm import GroupNorm, NormSiLU, norm_silu_conv


@dataclass(frozen=True)
class BlockConfig:
    """The options that all blocks of a U-Net share.

    Args:
        embedding_dim: width of the time and class embedding.
        norm_groups, norm_eps: of every GroupNorm.
        dropout: probability in the residual blocks, in [0, 1).
        num_heads: attention heads, if head_dim is None.
        head_dim: channels of a head; there are channels/head_dim heads.
        scale_shift: whether the embedding scales and shifts the output of the second norm instead of being added to its
            input.

    Raises:
        ValueError: a number out of range.
    """

    embedding_dim: int
    norm_groups: int = 32
    norm_eps: float = 1e-6
    dropout: float = 0.0
    num_heads: int = 1
    head_dim: int | None = None
    scale_shift: bool = False

    def __post_init__(self) -> None:
        if self.num_heads < 1 or (self.head_dim is not None and self.head_dim < 1):
            raise ValueError(f"backbone.num_heads={self.num_heads}, head_dim={self.head_dim}: must be >= 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"backbone.dropout={self.dropout}: choose 0 <= dropout < 1")

    def norm(self, channels: int) -> GroupNorm:
        return GroupNorm(self.norm_groups, channels, eps=self.norm_eps)

    def norm_silu(self, channels: int) -> NormSiLU:
        return NormSiLU(self.norm_groups, channels, eps=self.norm_eps)

    def heads(self, channels: int) -> int:
        return self.num_heads if self.head_dim is None else channels // self.head_dim


class SelfAttention(nn.Module):
    """x + proj(softmax(QKᵀ/√d) V) over all positions. Ref: DDPM App. B"""

    def __init__(self, channels: int, config: BlockConfig) -> None:
        super().__init__()
        self.num_heads = config.heads(channels)
        if self.num_heads < 1 or channels % self.num_heads:
            option = f"num_heads={config.num_heads}" if config.head_dim is None else f"head_dim={config.head_dim}"
            raise ValueError(
                f"backbone.{option} does not divide the {channels} channels of an attention layer; choose a divisor"
            )
        self.norm = config.norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).reshape(B, 3, self.num_heads, C // self.num_heads, H * W)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # each (B, heads, H·W, C/heads)
        y = attend(q, k, v)
        return self.out(y.transpose(-1, -2).reshape(B, C, H, W)).add_(x)


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, 3×3 conv, + embedding, GroupNorm, SiLU, dropout, 3×3 conv, + skip. Ref: DDPM App. B

    Args:
        resample: None, or a change of resolution. It acts between the first SiLU and the first convolution, and on the
            skip connection. Ref: BigGAN Fig. 15
    """

    def __init__(
        self, in_channels: int, out_channels: int, config: BlockConfig, resample: "Halve | Resize | None" = None
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample = config.scale_shift, resample
        self.norm_1 = config.norm_silu(in_channels)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embedding = nn.Linear(config.embedding_dim, out_channels * (2 if config.scale_shift else 1))
        self.norm_2 = config.norm(out_channels) if config.scale_shift else config.norm_silu(out_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv_2 = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor, size: torch.Size | None = None) -> Tensor:
        """x (B, C, H, W), embedding (B, embedding_dim); size (H', W') is the output's if `resample` is a `Resize`."""
        if self.resample is None:
            h = norm_silu_conv(self.norm_1, self.conv_1, x)
        else:
            h, x = self.conv_1(self.resample(self.norm_1(x), size)), self.resample(x, size)
        projected = self.embedding(F.silu(embedding))[:, :, None, None]
        if self.scale_shift:
            scale, shift = projected.chunk(2, dim=1)
            h = self.conv_2(self.dropout(F.silu(torch.addcmul(shift, self.norm_2(h), 1 + scale))))
        elif self.dropout.p:
            h = self.conv_2(self.dropout(self.norm_2(h.add_(projected))))
        else:
            h = norm_silu_conv(cast(NormSiLU, self.norm_2), self.conv_2, h.add_(projected))
        return h.add_(self.skip(x))


class Halve(nn.Module):
    """Averages 2×2 pixels: n -> ⌈n/2⌉."""

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


class Resize(nn.Module):
    """Resizes to a given size by nearest neighbours."""

    def forward(self, x: Tensor, size: torch.Size | None) -> Tensor:
        return F.interpolate(x, size=size, mode="nearest")


class Downsample(nn.Module):
    """A 3×3 convolution with stride 2: n -> ⌈n/2⌉.

    Args:
        symmetric: whether both ends are padded by 1. Otherwise the padding is TensorFlow's SAME, which DDPM's published
            weights need.
    """

    def __init__(self, channels: int, symmetric: bool = False) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[-2:]
        if self.symmetric:
            return self.conv(F.pad(x, (1, 1, 1, 1)))
        return self.conv(F.pad(x, (W % 2, 1, H % 2, 1)))  # (0, 1) pads an even side, (1, 1) an odd one


class Upsample(nn.Module):
    """Resizes to the size of the next skip connection by nearest neighbours, then applies a 3×3 convolution.

    Any size is restored exactly. On a CPU, doubling is one transposed convolution with 4/9 of the FLOPs.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        if x.device.type == "cpu" and tuple(size) == (2 * x.shape[-2], 2 * x.shape[-1]):
            return F.conv_transpose2d(x, _doubling(self.conv.weight), self.conv.bias, stride=2, padding=1)
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


def _doubling(weight: Tensor) -> Tensor:
    """The 4×4 kernel of a 3×3 convolution after doubling: each entry sums the weights that reach the same pixel."""
    return 4 * F.avg_pool2d(F.pad(weight.flip(-2, -1), (1, 1, 1, 1)), 2, stride=1).transpose(0, 1)
