"""The diffusion transformer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_diffusion.codecs.image_size import ImageSize
from lightning_diffusion.networks.layers import zero
from lightning_diffusion.networks.transformer import PatchTransformer, TokenAttention, mlp, position_embedding


class DiT(PatchTransformer):
    """The diffusion transformer: time and class modulate every block through adaLN-Zero, and it starts as the identity.

    Its arguments are those of `PatchTransformer`.

    Ref: DiT §3.2, Fig. 3
    """

    position: Tensor

    def __init__(
        self,
        image_size: ImageSize,
        in_channels: int,
        patch_size: int = 2,
        dim: int = 128,
        depth: int = 6,
        num_heads: int = 4,
        num_classes: int | None = None,
        outputs: int = 1,
        checkpointing: bool = False,
        condition_channels: int = 0,
        num_attributes: int = 0,
        num_words: int = 0,
    ) -> None:
        super().__init__(
            image_size, in_channels, patch_size, dim, depth, num_heads, num_classes, outputs, checkpointing,
            condition_channels, num_attributes, num_words,
        )  # fmt: skip
        position = position_embedding(self.patches.rows, self.patches.columns, dim)
        self.register_buffer("position", position, persistent=False)
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(depth))
        self.modulation = Modulation(dim, 2)

    def transform(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        embedding = F.silu(embedding)
        tokens = tokens + self.position.to(tokens.dtype)
        for block in self.blocks:
            tokens = self.run_block(block, tokens, embedding)
        shift, scale = self.modulation(embedding)
        return modulated(tokens, shift, scale)


class Block(nn.Module):
    """Attention, then an MLP, each as x + gate · f(modulated(x)); the gates start at 0."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention, self.mlp = TokenAttention(dim, num_heads), mlp(dim)
        self.modulation = Modulation(dim, 6)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(embedding)
        x = x + gate_1 * self.attention(modulated(x, shift_1, scale_1))
        return x + gate_2 * self.mlp(modulated(x, shift_2, scale_2))


class Modulation(nn.Module):
    """A linear map (B, dim) -> `count` vectors (B, 1, dim), which hold for all tokens and start at 0."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.linear = zero(nn.Linear(dim, count * dim))

    def forward(self, embedding: Tensor) -> tuple[Tensor, ...]:
        return self.linear(embedding)[:, None].chunk(self.count, dim=2)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm(x) · (1 + scale) + shift."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)
