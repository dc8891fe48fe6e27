"""The U-Net of DDPM, and by its options those of Improved DDPM and ADM."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.image_size import ImageSize
from lightning_diffusion.networks.layers import ConditionEmbedding, input_channels, maybe_checkpoint, with_image, zero
from lightning_diffusion.networks.norm import norm_silu_conv
from lightning_diffusion.networks.unet_blocks import (
    BlockConfig,
    Downsample,
    Halve,
    ResidualBlock,
    Resize,
    SelfAttention,
    Upsample,
)
from lightning_diffusion.networks.unet_plan import (
    Level,
    check_sizes,
    group_count,
    level_sides,
    levels_that_attend,
    plan_levels,
)

Resampling = Literal["conv", "symmetric_conv", "residual"]


class Stage(nn.Module):
    """A residual block, optionally followed by self-attention."""

    def __init__(self, in_channels: int, out_channels: int, config: BlockConfig, attention: bool) -> None:
        super().__init__()
        self.block = ResidualBlock(in_channels, out_channels, config)
        self.attention = SelfAttention(out_channels, config) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.block(x, embedding))


class UNet(nn.Module):
    """U-Net with residual blocks, self-attention and a time (and class) embedding.

    Args:
        image_size: side of the image in pixels, or [H, W]. Odd sides are allowed: a level halves n to ⌈n/2⌉.
        in_channels: channels of the image.
        channels: width of the first level, even, ≥ 4.
        channel_mults: width of each level as a multiple of `channels`; levels after the first halve the resolution.
        num_blocks: residual blocks on each level.
        attention_resolutions: sides, in pixels, of the levels with attention, which the middle always has. The side of
            a level that is not square is its longer one.
        num_heads: attention heads.
        head_dim: channels of a head; replaces num_heads.
        dropout: in the residual blocks, in [0, 1).
        num_classes: None for an unconditional network.
        outputs: 1, or 2 for a prediction and the variance of the reverse step, stacked along the channels.
        out_channels: channels of the output; None means outputs · in_channels.
        scale_shift: whether the embedding scales and shifts (ADM) instead of being added (DDPM).
        resampling: "conv" (strided convolution down; nearest neighbours and convolution up), "symmetric_conv" (the same
            with equal padding at both ends), or "residual" (BigGAN's residual blocks, ADM).
        norm_groups: None chooses 32, or fewer so that each group has at least four channels at the first level. A group
            of one channel would subtract the embedding that was just added, and lose time and class.
        norm_eps: of the normalization.
        frequency_shift: of the time embedding, 1 (DDPM) or 0.
        patch_size: p folds p×p pixels into channels before the first convolution and unfolds them after the last. The
            levels are p times smaller, so the same FLOPs allow more channels.
        condition_channels: channels of the condition's picture, which is appended to x; 0: takes no image.
        num_attributes, num_words: see `ConditionEmbedding`.
        checkpointing: recomputes each stage in the backward pass instead of keeping its activations.

    Raises:
        ValueError: a number out of range, or an attention resolution that no level has.

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
        out_channels: int | None = None,
        scale_shift: bool = False,
        resampling: Resampling = "conv",
        norm_groups: int | None = None,
        norm_eps: float = 1e-6,
        frequency_shift: int = 1,
        patch_size: int = 1,
        checkpointing: bool = False,
        condition_channels: int = 0,
        num_attributes: int = 0,
        num_words: int = 0,
    ) -> None:
        super().__init__()
        check_sizes(channels, channel_mults, num_blocks, outputs)
        attention = levels_that_attend(attention_resolutions, level_sides(image_size, patch_size, channel_mults))
        down, up = plan_levels(channels, channel_mults, num_blocks, attention)
        groups = group_count(norm_groups, channels)
        config = BlockConfig(4 * channels, groups, norm_eps, dropout, num_heads, head_dim, scale_shift)

        self.num_classes, self.outputs, self.checkpointing = num_classes, outputs, checkpointing
        self.scale_shift, self.resampling, self.patch_size = scale_shift, resampling, patch_size
        self.condition_channels, width = condition_channels, input_channels(in_channels, condition_channels)
        self.num_attributes, self.num_words = num_attributes, num_words
        self.embedding = ConditionEmbedding(
            channels, config.embedding_dim, num_classes, frequency_shift, condition_channels > 0, num_attributes,
            num_words,
        )  # fmt: skip
        self.stem = nn.Conv2d(patch_size**2 * width, channels, 3, padding=1)
        self.down, self.downsample = _build_levels(down, config, partial(_downsampling, resampling))
        width = down[-1].out_channels
        self.middle = nn.ModuleList(Stage(width, width, config, attention) for attention in (True, False))
        self.up, self.upsample = _build_levels(up, config, partial(_upsampling, resampling))
        self.norm = config.norm_silu(up[-1].out_channels)
        out_channels = outputs * in_channels if out_channels is None else out_channels
        self.head = zero(nn.Conv2d(up[-1].out_channels, patch_size**2 * out_channels, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        """x (B, C, H, W), time (B,) on DDPM's clock 0 … 1000, condition or None -> (B, outputs·C, H, W)."""
        embedding = self.embedding(time, condition)
        x = with_image(x, condition, self.condition_channels)
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


def _build_levels(
    levels: Sequence[Level], config: BlockConfig, make_resampling: Callable[[int, BlockConfig], nn.Module]
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The stages of each level, and the changes of resolution between the levels, made in the order of use."""
    stages, resamplings = nn.ModuleList(), nn.ModuleList()
    for level in levels:
        stages.append(nn.ModuleList(Stage(n, level.out_channels, config, level.attention) for n in level.in_channels))
        if level.resampled:
            resamplings.append(make_resampling(level.out_channels, config))
    return stages, resamplings


def _downsampling(resampling: Resampling, channels: int, config: BlockConfig) -> nn.Module:
    if resampling == "residual":
        return ResidualBlock(channels, channels, config, Halve())
    return Downsample(channels, symmetric=resampling == "symmetric_conv")


def _upsampling(resampling: Resampling, channels: int, config: BlockConfig) -> nn.Module:
    return ResidualBlock(channels, channels, config, Resize()) if resampling == "residual" else Upsample(channels)


def _resampled(module: nn.Module, x: Tensor, embedding: Tensor, size: torch.Size | None = None) -> Tensor:
    if isinstance(module, ResidualBlock):
        return module(x, embedding, size)
    return module(x) if size is None else module(x, size)
