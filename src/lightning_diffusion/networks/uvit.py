"""The U-shaped vision transformer."""

import torch
from torch import Tensor, nn

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.image_size import ImageSize
from lightning_diffusion.networks.transformer import PatchTransformer, TokenAttention, mlp


class UViT(PatchTransformer):
    """A transformer that takes time and class as one more token and joins its first half to its second by long skips.

    Its arguments are those of `PatchTransformer`. depth is odd: equally many blocks on the way in and on the way out,
    and one between.

    Ref: U-ViT §3, Fig. 1
    """

    def __init__(
        self,
        image_size: ImageSize,
        in_channels: int,
        patch_size: int = 2,
        dim: int = 128,
        depth: int = 7,
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
        if depth % 2 == 0:
            raise ValueError(f"backbone.depth={depth}: choose an odd number, with a block between the two halves")
        self.position = nn.Parameter(0.02 * torch.randn(1 + self.patches.rows * self.patches.columns, dim))
        self.inward = nn.ModuleList(Block(dim, num_heads) for _ in range(depth // 2))
        self.middle = Block(dim, num_heads)
        self.joined = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(depth // 2))
        self.outward = nn.ModuleList(Block(dim, num_heads) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(dim)
        self.head = _identity(self.patches.out_channels)

    def forward(self, x: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        return self.head(super().forward(x, time, condition))

    def transform(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        tokens = torch.cat([embedding[:, None], tokens], dim=1) + self.position  # (B, 1 + N, dim)
        skips = []
        for block in self.inward:
            tokens = self.run_block(block, tokens)
            skips.append(tokens)
        tokens = self.run_block(self.middle, tokens)
        for join, block in zip(self.joined, self.outward, strict=True):
            tokens = self.run_block(block, join(torch.cat([tokens, skips.pop()], dim=2)))
        return self.norm(tokens[:, 1:])


def _identity(channels: int) -> nn.Conv2d:
    """A 3×3 convolution that starts as the identity: zeros would keep the gradient from every layer before it."""
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    nn.init.dirac_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention, self.mlp = TokenAttention(dim, num_heads), mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))
