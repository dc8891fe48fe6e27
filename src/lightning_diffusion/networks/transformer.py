"""Transformers that see an image as a sequence of patches."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.image_size import ImageSize
from lightning_diffusion.networks.layers import (
    ConditionEmbedding,
    attend,
    input_channels,
    maybe_checkpoint,
    patch_rows_columns,
    with_image,
    zero,
)


class PatchTransformer(nn.Module, ABC):
    """A transformer on the patches of an image, given time and class.

    Args:
        image_size: side of the image in pixels, or [H, W].
        in_channels: channels of the image.
        patch_size: side of a patch; it divides both sides of the image.
        dim: channels of a token, a multiple of 4 · num_heads.
        depth: number of blocks.
        num_heads: heads of each attention.
        num_classes: None for an unconditional network.
        outputs: see `UNet`.
        condition_channels: channels of the condition's picture, which is appended to x; 0: takes no image.
        num_attributes, num_words: see `ConditionEmbedding`.
        checkpointing: recomputes each block in the backward pass instead of keeping its activations.

    Raises:
        ValueError: sizes that do not fit together.
    """

    def __init__(
        self,
        image_size: ImageSize,
        in_channels: int,
        patch_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        num_classes: int | None,
        outputs: int,
        checkpointing: bool,
        condition_channels: int = 0,
        num_attributes: int = 0,
        num_words: int = 0,
    ) -> None:
        super().__init__()
        patch_rows_columns(image_size, patch_size)
        if num_heads < 1 or dim % (4 * num_heads) or depth < 1:
            raise ValueError(
                f"backbone.dim={dim}, num_heads={num_heads}, depth={depth}: choose depth >= 1, num_heads >= 1 and "
                "a dim that 4 · num_heads divides"
            )
        self.num_classes, self.outputs, self.checkpointing = num_classes, outputs, checkpointing
        self.condition_channels, self.num_attributes, self.num_words = condition_channels, num_attributes, num_words
        self.embedding = ConditionEmbedding(
            dim, dim, num_classes, takes_image=condition_channels > 0, num_attributes=num_attributes,
            num_words=num_words,
        )  # fmt: skip
        width = input_channels(in_channels, condition_channels)
        self.patches = Patches(image_size, width, patch_size, dim, outputs * in_channels)

    def forward(self, x: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        """x (B, C, H, W), time (B,) on DDPM's clock 0 … 1000, condition or None -> (B, outputs·C, H, W)."""
        embedding = self.embedding(time, condition)
        tokens = self.patches.to_tokens(with_image(x, condition, self.condition_channels))
        return self.patches.to_image(self.transform(tokens, embedding))

    @abstractmethod
    def transform(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        """The patches' tokens (B, N, dim) and the embedding (B, dim) of time and class -> tokens (B, N, dim)."""

    def run_block(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        return maybe_checkpoint(self.checkpointing, block, *inputs)


class Patches(nn.Module):
    """Image -> tokens and back: a linear map of each p × p patch, in reading order.

    Args:
        image_size: side of the image in pixels, or [H, W].
        channels: channels of the image.
        patch_size: p, which divides both sides.
        dim: channels of a token.
        out_channels: channels of the image that `to_image` returns; its weights start at 0.
    """

    def __init__(self, image_size: ImageSize, channels: int, patch_size: int, dim: int, out_channels: int) -> None:
        super().__init__()
        self.rows, self.columns = patch_rows_columns(image_size, patch_size)
        self.patch_size, self.out_channels = patch_size, out_channels
        self.embed = nn.Conv2d(channels, dim, patch_size, stride=patch_size)
        self.unembed = zero(nn.Linear(dim, patch_size**2 * out_channels))
        nn.init.xavier_uniform_(self.embed.weight.flatten(1))
        nn.init.zeros_(self.embed.bias)  # type: ignore[arg-type]

    def to_tokens(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, dim)."""
        return self.embed(x.to(self.embed.weight.dtype)).flatten(2).transpose(1, 2)

    def to_image(self, tokens: Tensor) -> Tensor:
        """(B, N, dim) -> (B, C_out, H, W)."""
        p, rows, columns = self.patch_size, self.rows, self.columns
        x = self.unembed(tokens).unflatten(1, (rows, columns)).unflatten(3, (p, p, self.out_channels))
        return x.permute(0, 5, 1, 3, 2, 4).reshape(len(x), self.out_channels, rows * p, columns * p)


def position_embedding(rows: int, columns: int, dim: int) -> Tensor:
    """[sin, cos](ω_k row), [sin, cos](ω_k column), ω_k = 10000^(−4k/dim): (rows · columns, dim) in reading order.

    Ref: Attention Is All You Need §3.5, for two axes as in MAE
    """
    omega = 10_000.0 ** (-torch.arange(dim // 4) * 4 / dim)
    angle = torch.arange(max(rows, columns))[:, None] * omega  # (positions, dim/4)
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # (positions, dim/2)
    return torch.cat([axis[:rows].repeat_interleave(columns, dim=0), axis[:columns].repeat(rows, 1)], dim=1)


class TokenAttention(nn.Module):
    """proj(softmax(QKᵀ/√d) V) over the tokens: (B, N, dim) -> (B, N, dim)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


def mlp(dim: int, ratio: int = 4) -> nn.Sequential:
    """A linear map to ratio · dim, GELU, and a linear map back."""
    return nn.Sequential(nn.Linear(dim, ratio * dim), nn.GELU(approximate="tanh"), nn.Linear(ratio * dim, dim))
