"""Pieces that backbones share."""

import math
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.image_size import ImageSize, height_width, simplest, typed
from lightning_diffusion.networks.norm import GroupNorm, NormSiLU, norm_silu_conv

SHORT = 64  # positions up to which plain products do in bfloat16 on a CPU; the fused kernel takes 14 ms for 49 there

Module = TypeVar("Module", bound=nn.Module)


def sinusoidal_embedding(time: Tensor, dim: int, frequency_shift: int = 1) -> Tensor:
    """[sin(ω_k t), cos(ω_k t)], ω_k = 10⁴^(−k/(dim/2 − shift)), k = 0 … dim/2 − 1: time (B,) -> (B, dim), float32.

    Ref: DDPM App. B and its published code (shift 1); Attention Is All You Need §3.5 (shift 0)
    """
    half = dim // 2
    omega = torch.exp(-math.log(10_000) / (half - frequency_shift) * torch.arange(half, device=time.device))
    angle = time.float()[:, None] * omega  # (B, dim/2)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def zero(module: Module) -> Module:
    """Sets every parameter to 0: the branch that the module ends starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def patch_rows_columns(image_size: ImageSize, patch_size: int) -> tuple[int, int]:
    """(H/p, W/p), the rows and columns of patches of p × p pixels.

    Raises:
        ValueError: patches that do not fill the image, naming the nearest sizes that they fill.
    """
    sides, p = height_width(image_size), max(patch_size, 1)
    if patch_size < 1 or any(side % p for side in sides):
        legal = [p for p in range(1, min(sides) + 1) if not any(side % p for side in sides)]
        below, above = ([max(1, side // p + more) * p for side in sides] for more in (0, 1))
        above = [side if side % p == 0 else larger for side, larger in zip(sides, above, strict=True)]
        raise ValueError(
            f"backbone.patch_size={patch_size} and data.image_size={typed(image_size)}: patches do not fill the image; "
            f"choose backbone.patch_size among {legal}, or data.image_size={typed(simplest(below))} or "
            f"{typed(simplest(above))}"
        )
    return sides[0] // p, sides[1] // p


def maybe_checkpoint(wanted: bool, module: nn.Module, *inputs: Tensor) -> Tensor:
    """module(*inputs); if wanted, computed anew in the backward pass, which keeps nothing but the inputs."""
    if wanted and torch.is_grad_enabled():
        return checkpoint(module, *inputs, use_reentrant=False)
    return module(*inputs)


@dataclass(frozen=True)
class BlockConfig:
    """How the pieces of a U-Net are built.

    Args:
        embedding_dim: of the time and class embedding.
        norm_groups, norm_eps: of every GroupNorm.
        dropout: in the residual blocks.
        num_heads, head_dim: of attention; head_dim, where given, makes channels/head_dim heads.
        scale_shift: the embedding scales and shifts the second norm's output, instead of being added before it.
    """

    embedding_dim: int
    norm_groups: int = 32
    norm_eps: float = 1e-6
    dropout: float = 0.0
    num_heads: int = 1
    head_dim: int | None = None
    scale_shift: bool = False

    def norm(self, channels: int) -> GroupNorm:
        return GroupNorm(self.norm_groups, channels, eps=self.norm_eps)

    def norm_silu(self, channels: int) -> NormSiLU:
        return NormSiLU(self.norm_groups, channels, eps=self.norm_eps)

    def heads(self, channels: int) -> int:
        return self.num_heads if self.head_dim is None else channels // self.head_dim


class ConditionEmbedding(nn.Module):
    """Time, and class where there are classes, as one vector.

    The embedding table has one row more than classes; that row, also taken without a condition, is "no class".

    Args:
        dim: sinusoidal width, even, ≥ 4.
        out_dim: width of the result.
        num_classes: None for an unconditional network.
        frequency_shift: see `sinusoidal_embedding`.
    """

    def __init__(self, dim: int, out_dim: int, num_classes: int | None, frequency_shift: int = 1) -> None:
        super().__init__()
        self.dim, self.num_classes, self.frequency_shift = dim, num_classes, frequency_shift
        self.mlp = nn.Sequential(nn.Linear(dim, out_dim), nn.SiLU(), nn.Linear(out_dim, out_dim))
        self.classes = None if num_classes is None else nn.Embedding(num_classes + 1, out_dim)

    def forward(self, time: Tensor, condition: Condition | None) -> Tensor:
        """time (B,), condition by label in 0 … num_classes or None -> (B, out_dim).

        Raises:
            ValueError: a part of the condition that has no embedding here.
        """
        refuse_parts(condition, *([] if self.classes is None else ["label"]))
        features = sinusoidal_embedding(time, self.dim, self.frequency_shift)
        embedding = self.mlp(features.to(next(self.mlp.parameters()).dtype))
        if self.classes is not None and self.num_classes is not None:
            label = None if condition is None else condition.label
            if label is None:
                label = torch.full(time.shape, self.num_classes, device=time.device, dtype=torch.long)
            embedding = embedding + self.classes(label)
        return embedding


def refuse_parts(condition: Condition | None, *embedded: str) -> None:
    """Raises ValueError for a part of the condition that is none of those which a network embeds."""
    for name in () if condition is None else condition.parts:
        if name not in embedded:
            raise ValueError(f"condition.{name}: this network has no embedding for it; leave it out")


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(QKᵀ/√d) V over all positions: q, k, v (…, positions, d) -> the same shape."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[-2] <= SHORT:
        return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class SelfAttention(nn.Module):
    """x + proj(softmax(QKᵀ/√d) V) over all positions. Ref: DDPM App. B"""

    def __init__(self, channels: int, style: BlockConfig) -> None:
        super().__init__()
        self.num_heads = style.heads(channels)
        if self.num_heads < 1 or channels % self.num_heads:
            keys = f"num_heads={style.num_heads}" if style.head_dim is None else f"head_dim={style.head_dim}"
            raise ValueError(
                f"backbone.{keys} does not divide the {channels} channels where it attends; choose a divisor"
            )
        self.norm = style.norm(channels)
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
        resample: None, or a change of resolution between the first SiLU and the first convolution, on the skip too.
            Ref: BigGAN Fig. 15
    """

    def __init__(
        self, in_channels: int, out_channels: int, style: BlockConfig, resample: "Halve | Resize | None" = None
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample = style.scale_shift, resample
        self.norm_1 = style.norm_silu(in_channels)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embedding = nn.Linear(style.embedding_dim, out_channels * (2 if style.scale_shift else 1))
        self.norm_2 = style.norm(out_channels) if style.scale_shift else style.norm_silu(out_channels)
        self.dropout = nn.Dropout(style.dropout)
        self.conv_2 = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor, size: torch.Size | None = None) -> Tensor:
        """x (B, C, H, W), embedding (B, embedding_dim); size (H', W') where a `Resize` is to bring it."""
        if self.resample is None:
            h = norm_silu_conv(self.norm_1, self.conv_1, x)
        else:
            h, x = self.conv_1(self.resample(self.norm_1(x), size)), self.resample(x, size)
        steering = self.embedding(F.silu(embedding))[:, :, None, None]
        if self.scale_shift:
            scale, shift = steering.chunk(2, dim=1)
            h = self.conv_2(self.dropout(F.silu(torch.addcmul(shift, self.norm_2(h), 1 + scale))))
        elif self.dropout.p:
            h = self.conv_2(self.dropout(self.norm_2(h.add_(steering))))
        else:
            h = norm_silu_conv(cast(NormSiLU, self.norm_2), self.conv_2, h.add_(steering))
        return h.add_(self.skip(x))


class Halve(nn.Module):
    """The mean of 2×2 pixels, n -> ⌈n/2⌉."""

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


class Resize(nn.Module):
    """Nearest neighbour to a size."""

    def forward(self, x: Tensor, size: torch.Size | None) -> Tensor:
        return F.interpolate(x, size=size, mode="nearest")


class Downsample(nn.Module):
    """3×3 conv with stride 2, n -> ⌈n/2⌉.

    Args:
        symmetric: pads both ends by 1; otherwise as TensorFlow's SAME, which DDPM's published weights need.
    """

    def __init__(self, channels: int, symmetric: bool = False) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[-2:]
        if self.symmetric:
            return self.conv(F.pad(x, (1, 1, 1, 1)))
        return self.conv(F.pad(x, (W % 2, 1, H % 2, 1)))  # an even side is padded by (0, 1), an odd one by (1, 1)


class Upsample(nn.Module):
    """Nearest neighbour to the size of the skip connection that follows, then 3×3 conv: any size comes back exactly.

    To twice the size, on a CPU, it is one transposed convolution of 4/9 the FLOPs.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        if x.device.type == "cpu" and tuple(size) == (2 * x.shape[-2], 2 * x.shape[-1]):
            return F.conv_transpose2d(x, _doubling(self.conv.weight), self.conv.bias, stride=2, padding=1)
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


def _doubling(weight: Tensor) -> Tensor:
    """Of a 3×3 convolution after doubling: each input pixel reaches 2×2 pixels first, and 4×4 in all, by sums of w."""
    return 4 * F.avg_pool2d(F.pad(weight.flip(-2, -1), (1, 1, 1, 1)), 2, stride=1).transpose(0, 1)
