"""The U-Net of DDPM, and by its options those of Improved DDPM and ADM."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.image_size import ImageSize, typed
from lightning_diffusion.networks.layers import (
    BlockConfig,
    ConditionEmbedding,
    Downsample,
    Halve,
    ResidualBlock,
    Resize,
    SelfAttention,
    Upsample,
    maybe_checkpoint,
    patch_rows_columns,
    zero,
)
from lightning_diffusion.networks.norm import norm_silu_conv

Resampling = Literal["conv", "symmetric_conv", "residual"]


class Stage(nn.Module):
    """A residual block, and self-attention after it where asked."""

    def __init__(self, in_channels: int, out_channels: int, style: BlockConfig, attention: bool) -> None:
        super().__init__()
        self.block = ResidualBlock(in_channels, out_channels, style)
        self.attention = SelfAttention(out_channels, style) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.block(x, embedding))


class UNet(nn.Module):
    """U-Net with residual blocks, self-attention and a time (and class) embedding.

    Args:
        image_size: side of the image in pixels, or [H, W]; any size, odd ones too: a level halves n to ⌈n/2⌉.
        in_channels: channels of the image.
        channels: width of the first level, even, ≥ 4.
        channel_mults: width of each level as a multiple of `channels`; one level more halves the resolution once more.
        num_blocks: residual blocks on each level.
        attention_resolutions: sides, in pixels, of the levels that attend (beside the middle); of a level that is not
            square, the longer side.
        num_heads: attention heads.
        head_dim: channels of a head, in place of their number.
        dropout: in the residual blocks, in [0, 1).
        num_classes: None for an unconditional network.
        outputs: images that the network puts out, stacked along the channels; 2 adds the reverse step's variance.
        scale_shift: the embedding scales and shifts (ADM) instead of being added (DDPM).
        resampling: "conv" (strided convolution; nearest neighbour and convolution), "symmetric_conv" (padded on both
            ends alike), or "residual" (BigGAN's residual blocks, ADM).
        norm_groups: None takes 32, or fewer so that each has at least four channels at the first level: a group of one
            channel would subtract what the embedding has just added, and be blind to time and class.
        norm_eps: of the normalization.
        frequency_shift: of the time embedding, 1 (DDPM) or 0.
        patch_size: p folds p×p pixels into channels before the first convolution, and unfolds them after the last: the
            levels start p times smaller, where the same FLOPs buy more width.
        checkpointing: computes each stage anew in the backward pass instead of keeping its activations.

    Raises:
        ValueError: a size out of range, or an attention resolution that no level has.

    Ref: DDPM App. B; Improved DDPM §3; Diffusion Models Beat GANs §3; simple diffusion for the patches
    """

    def __init__(
        self,
        image_size: ImageSize,
        in_channels: int,
        channels: int = 128,
        channel_mults: Sequence[int] = (1, 2, 2, 2),
        num_blocks: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        num_heads: int = 1,
        head_dim: int | None = None,
        dropout: float = 0.0,
        num_classes: int | None = None,
        outputs: int = 1,
        scale_shift: bool = False,
        resampling: Resampling = "conv",
        norm_groups: int | None = None,
        norm_eps: float = 1e-6,
        frequency_shift: int = 1,
        patch_size: int = 1,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes, self.outputs, self.checkpointing = num_classes, outputs, checkpointing
        self.scale_shift, self.resampling, self.patch_size = scale_shift, resampling, patch_size
        _check_sizes(channels, channel_mults, num_blocks, outputs)
        sides = _sides(image_size, patch_size, channel_mults)
        _check_attention(attention_resolutions, sides)
        groups = norm_groups or max(g for g in range(1, min(32, channels // 4) + 1) if channels % g == 0)
        _check_style(channels, num_heads, head_dim, dropout, groups)
        style = BlockConfig(4 * channels, groups, norm_eps, dropout, num_heads, head_dim, scale_shift)
        widths = [channels * mult for mult in channel_mults]

        self.embedding = ConditionEmbedding(channels, style.embedding_dim, num_classes, frequency_shift)
        self.stem = nn.Conv2d(patch_size**2 * in_channels, channels, 3, padding=1)
        skips, width = [channels], channels

        self.down, self.downsample = nn.ModuleList(), nn.ModuleList()
        for level, (side, out) in enumerate(zip(sides, widths, strict=True)):
            stages = nn.ModuleList()
            for _ in range(num_blocks):
                stages.append(Stage(width, out, style, side in attention_resolutions))
                width = out
                skips.append(width)
            self.down.append(stages)
            if level < len(widths) - 1:
                self.downsample.append(_downsampling(resampling, width, style))
                skips.append(width)

        self.middle = nn.ModuleList(Stage(width, width, style, attention) for attention in (True, False))

        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        for level, (side, out) in enumerate(zip(reversed(sides), reversed(widths), strict=True)):
            stages = nn.ModuleList()
            for _ in range(num_blocks + 1):
                stages.append(Stage(width + skips.pop(), out, style, side in attention_resolutions))
                width = out
            self.up.append(stages)
            if level < len(widths) - 1:
                residual = resampling == "residual"
                self.upsample.append(ResidualBlock(width, width, style, Resize()) if residual else Upsample(width))

        self.norm = style.norm_silu(width)
        self.head = zero(nn.Conv2d(width, patch_size**2 * outputs * in_channels, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        """x (B, C, H, W), time (B,) on DDPM's clock 0 … 1000, condition by label or None -> (B, outputs·C, H, W)."""
        embedding = self.embedding(time, condition)
        x = self.stem(F.pixel_unshuffle(x.to(self.stem.weight.dtype), self.patch_size))
        skips = [x]
        for level, stages in enumerate(self.down):
            for stage in stages.children():
                x = maybe_checkpoint(self.checkpointing, stage, x, embedding)
                skips.append(x)
            if level < len(self.downsample):
                x = _resampled(self.downsample[level], x, embedding)
                skips.append(x)
        for stage in self.middle:
            x = maybe_checkpoint(self.checkpointing, stage, x, embedding)
        for level, stages in enumerate(self.up):
            for stage in stages.children():
                x = maybe_checkpoint(self.checkpointing, stage, torch.cat([x, skips.pop()], dim=1), embedding)
            if level < len(self.upsample):
                x = _resampled(self.upsample[level], x, embedding, skips[-1].shape[-2:])
        return F.pixel_shuffle(norm_silu_conv(self.norm, self.head, x), self.patch_size)


def _downsampling(resampling: Resampling, channels: int, style: BlockConfig) -> nn.Module:
    if resampling == "residual":
        return ResidualBlock(channels, channels, style, Halve())
    return Downsample(channels, symmetric=resampling == "symmetric_conv")


def _resampled(module: nn.Module, x: Tensor, embedding: Tensor, size: torch.Size | None = None) -> Tensor:
    if isinstance(module, ResidualBlock):
        return module(x, embedding, size)
    return module(x) if size is None else module(x, size)


def _sides(image_size: ImageSize, patch_size: int, channel_mults: Sequence[int]) -> list[int]:
    """The longer side of each level, in patches."""
    longer, shorter = ([side] for side in sorted(patch_rows_columns(image_size, patch_size), reverse=True))
    for sides in (longer, shorter):
        for _ in channel_mults[1:]:
            sides.append((sides[-1] + 1) // 2)
    if shorter[-1] < 2:
        raise ValueError(
            f"backbone.channel_mults={list(channel_mults)} and data.image_size={typed(image_size)}: the levels shrink "
            f"to {shorter} pixels; give fewer multiples"
        )
    return longer


def _check_sizes(channels: int, channel_mults: Sequence[int], num_blocks: int, outputs: int) -> None:
    if channels < 4 or channels % 2:
        raise ValueError(f"backbone.channels={channels}: choose an even number >= 4")
    if not channel_mults or min(channel_mults) < 1:
        raise ValueError(f"backbone.channel_mults={list(channel_mults)}: give one multiple >= 1 for each level")
    if num_blocks < 1:
        raise ValueError(f"backbone.num_blocks={num_blocks}: must be >= 1")
    if outputs not in (1, 2):
        raise ValueError(f"backbone.outputs={outputs}: choose 1, or 2 for a prediction and the variance")


def _check_attention(attention_resolutions: Sequence[int], sides: list[int]) -> None:
    unreached = [r for r in attention_resolutions if r not in sides]
    if unreached:
        raise ValueError(
            f"backbone.attention_resolutions={list(attention_resolutions)}: no level is {unreached[0]} pixels wide "
            f"on its longer side; choose among {sides}"
        )


def _check_style(channels: int, num_heads: int, head_dim: int | None, dropout: float, groups: int) -> None:
    if num_heads < 1 or (head_dim is not None and head_dim < 1):
        raise ValueError(f"backbone.num_heads={num_heads}, head_dim={head_dim}: must be >= 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"backbone.dropout={dropout}: choose 0 <= dropout < 1")
    if groups < 1 or channels % groups:
        raise ValueError(
            f"backbone.norm_groups={groups} and backbone.channels={channels}: choose groups that divide them"
        )
