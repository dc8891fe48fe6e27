"""Pieces that backbones share."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoidal_embedding(time: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """[sin(ω_k t), cos(ω_k t)], ω_k = max_period^(−k/(dim/2 − 1)), k = 0 … dim/2 − 1: time (B,) -> (B, dim), float32.

    Ref: DDPM App. B and its published code
    """
    half = dim // 2
    omega = torch.exp(-math.log(max_period) / (half - 1) * torch.arange(half, device=time.device))
    angle = time.float()[:, None] * omega  # (B, dim/2)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def zero(module: nn.Module) -> nn.Module:
    """Sets every parameter to 0: the branch that the module ends starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def group_norm(channels: int, max_groups: int = 32, least_width: int = 4) -> nn.GroupNorm:
    """GroupNorm with as many groups as divide the channels, up to 32, of at least four channels each.

    DDPM's 32 groups assume 128 channels or more: a group of one channel would subtract whatever constant the embedding
    has just added to that channel, and the network would be blind to time and class.
    """
    groups = next(g for g in range(max(1, min(max_groups, channels // least_width)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ConditionEmbedding(nn.Module):
    """Time, and class where there are classes, as one vector.

    The embedding table has one row more than classes; that row, also taken where cond is None, is "no class".

    Args:
        dim: sinusoidal width, even, ≥ 4.
        out_dim: width of the result.
        num_classes: None for an unconditional network.
    """

    def __init__(self, dim: int, out_dim: int, num_classes: int | None) -> None:
        super().__init__()
        self.dim, self.num_classes = dim, num_classes
        self.mlp = nn.Sequential(nn.Linear(dim, out_dim), nn.SiLU(), nn.Linear(out_dim, out_dim))
        self.classes = None if num_classes is None else nn.Embedding(num_classes + 1, out_dim)

    def forward(self, time: Tensor, cond: Tensor | None) -> Tensor:
        """time (B,), cond (B,) in 0 … num_classes or None -> (B, out_dim)."""
        embedding = self.mlp(sinusoidal_embedding(time, self.dim).to(next(self.mlp.parameters()).dtype))
        if self.classes is not None and self.num_classes is not None:
            if cond is None:
                cond = torch.full(time.shape, self.num_classes, device=time.device, dtype=torch.long)
            embedding = embedding + self.classes(cond)
        return embedding


class SelfAttention(nn.Module):
    """x + proj(softmax(QKᵀ/√d) V) over all positions. Ref: DDPM App. B

    Args:
        channels: C.
        num_heads: divides C.
    """

    def __init__(self, channels: int, num_heads: int = 1) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"backbone.num_heads={num_heads} does not divide the {channels} channels where it attends")
        self.num_heads = num_heads
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).reshape(B, 3, self.num_heads, C // self.num_heads, H * W)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # each (B, heads, H·W, C/heads)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(-1, -2).reshape(B, C, H, W))


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, 3×3 conv, + embedding, GroupNorm, SiLU, dropout, 3×3 conv, + skip. Ref: DDPM App. B"""

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm_1 = group_norm(in_channels)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embedding = nn.Linear(embedding_dim, out_channels)
        self.norm_2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv_1(F.silu(self.norm_1(x)))
        h = h + self.embedding(F.silu(embedding))[:, :, None, None]
        h = self.conv_2(self.dropout(F.silu(self.norm_2(h))))
        return self.skip(x) + h


class Downsample(nn.Module):
    """3×3 conv with stride 2, n -> ⌈n/2⌉, padded as TensorFlow's SAME (so also as DDPM's published weights need)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[-2:]
        return self.conv(F.pad(x, (W % 2, 1, H % 2, 1)))  # an even side is padded by (0, 1), an odd one by (1, 1)


class Upsample(nn.Module):
    """Nearest neighbour to the size of the skip connection that follows, then 3×3 conv: any size comes back exactly."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
