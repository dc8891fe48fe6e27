"""The U-Net of DDPM."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.backbones.layers import (
    ConditionEmbedding,
    Downsample,
    ResidualBlock,
    SelfAttention,
    Upsample,
    group_norm,
    zero,
)


class Stage(nn.Module):
    """A residual block, and self-attention after it where asked."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int,
        dropout: float,
        attention: bool,
        num_heads: int,
    ) -> None:
        super().__init__()
        self.block = ResidualBlock(in_channels, out_channels, embedding_dim, dropout)
        self.attention = SelfAttention(out_channels, num_heads) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.block(x, embedding))


class UNet(nn.Module):
    """U-Net with residual blocks, self-attention and a time (and class) embedding. Ref: DDPM App. B

    Args:
        image_size: side of the image in pixels; any size, odd ones too: a level halves n to ⌈n/2⌉.
        in_channels: channels of the image.
        channels: width of the first level, even, ≥ 4.
        channel_mults: width of each level as a multiple of `channels`; one level more halves the resolution once more.
        num_blocks: residual blocks on each level.
        attention_resolutions: sides, in pixels, at which to attend (beside the middle).
        num_heads: attention heads.
        dropout: in the residual blocks, in [0, 1).
        num_classes: None for an unconditional network.
        outputs: images that the network puts out, stacked along the channels; 2 adds the reverse step's variance.

    Raises:
        ValueError: a size out of range, or an attention resolution that no level has.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        channels: int = 128,
        channel_mults: Sequence[int] = (1, 2, 2, 2),
        num_blocks: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        num_heads: int = 1,
        dropout: float = 0.0,
        num_classes: int | None = None,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        self.num_classes, self.outputs = num_classes, outputs
        sides = _sides(image_size, len(channel_mults))
        _check(sides, channels, channel_mults, num_blocks, attention_resolutions, num_heads, dropout, outputs)
        widths = [channels * mult for mult in channel_mults]
        embedding_dim = 4 * channels

        def stage(in_channels: int, out_channels: int, attention: bool) -> Stage:
            return Stage(in_channels, out_channels, embedding_dim, dropout, attention, num_heads)

        self.embedding = ConditionEmbedding(channels, embedding_dim, num_classes)
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1)
        skips, width = [channels], channels

        self.down, self.downsample = nn.ModuleList(), nn.ModuleList()
        for level, (side, out) in enumerate(zip(sides, widths, strict=True)):
            stages = nn.ModuleList()
            for _ in range(num_blocks):
                stages.append(stage(width, out, side in attention_resolutions))
                width = out
                skips.append(width)
            self.down.append(stages)
            if level < len(widths) - 1:
                self.downsample.append(Downsample(width))
                skips.append(width)

        self.middle = nn.ModuleList([stage(width, width, attention=True), stage(width, width, attention=False)])

        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        for level, (side, out) in enumerate(zip(reversed(sides), reversed(widths), strict=True)):
            stages = nn.ModuleList()
            for _ in range(num_blocks + 1):
                stages.append(stage(width + skips.pop(), out, side in attention_resolutions))
                width = out
            self.up.append(stages)
            if level < len(widths) - 1:
                self.upsample.append(Upsample(width))

        self.norm = group_norm(width)
        self.head = zero(nn.Conv2d(width, outputs * in_channels, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor, cond: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), time (B,) on DDPM's clock 0 … 1000, cond (B,) labels or None -> (B, outputs·C, H, W)."""
        embedding = self.embedding(time, cond)
        x = self.stem(x.to(self.stem.weight.dtype))
        skips = [x]
        for level, stages in enumerate(self.down):
            for stage in stages.children():
                x = stage(x, embedding)
                skips.append(x)
            if level < len(self.downsample):
                x = self.downsample[level](x)
                skips.append(x)
        for stage in self.middle:
            x = stage(x, embedding)
        for level, stages in enumerate(self.up):
            for stage in stages.children():
                x = stage(torch.cat([x, skips.pop()], dim=1), embedding)
            if level < len(self.upsample):
                x = self.upsample[level](x, skips[-1].shape[-2:])
        return self.head(F.silu(self.norm(x)))


def _sides(image_size: int, num_levels: int) -> list[int]:
    sides = [image_size]
    for _ in range(num_levels - 1):
        sides.append((sides[-1] + 1) // 2)
    return sides


def _check(
    sides: list[int],
    channels: int,
    channel_mults: Sequence[int],
    num_blocks: int,
    attention_resolutions: Sequence[int],
    num_heads: int,
    dropout: float,
    outputs: int,
) -> None:
    if channels < 4 or channels % 2:
        raise ValueError(f"backbone.channels={channels}: choose an even number >= 4")
    if not channel_mults or min(channel_mults) < 1:
        raise ValueError(f"backbone.channel_mults={list(channel_mults)}: give one multiple >= 1 for each level")
    if num_blocks < 1 or num_heads < 1:
        raise ValueError(f"backbone.num_blocks={num_blocks}, backbone.num_heads={num_heads}: both must be >= 1")
    if outputs not in (1, 2):
        raise ValueError(f"backbone.outputs={outputs}: choose 1, or 2 for a prediction and the variance")
    if not 0 <= dropout < 1:
        raise ValueError(f"backbone.dropout={dropout}: choose 0 <= dropout < 1")
    if sides[-1] < 2:
        raise ValueError(
            f"backbone.channel_mults={list(channel_mults)} and data.image_size={sides[0]}: the levels shrink to "
            f"{sides} pixels; give fewer multiples"
        )
    unreached = [r for r in attention_resolutions if r not in sides]
    if unreached:
        raise ValueError(
            f"backbone.attention_resolutions={list(attention_resolutions)}: no level is {unreached[0]} pixels wide; "
            f"with data.image_size={sides[0]} choose among {sides}"
        )
