"""The U-shaped vision transformer."""

import torch
from torch import Tensor, nn

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.image_size import ImageSize
from lightning_diffusion.networks.layers import ConditionEmbedding, maybe_checkpoint
from lightning_diffusion.networks.transformer import Patches, TokenAttention, check_tokens, mlp


class UViT(nn.Module):
    """A transformer that takes time and class as one more token, and joins its first half to its second by long skips.

    Args:
        image_size: side of the image in pixels, or [H, W].
        in_channels: of the image.
        patch_size: divides its sides.
        dim: of a token; 4 · num_heads divides it.
        depth: blocks, an odd number: as many on the way in as on the way out, and one between.
        num_heads: of each attention.
        num_classes: None for an unconditional network.
        outputs: see `UNet`.
        checkpointing: computes each block anew in the backward pass instead of keeping its activations.

    Raises:
        ValueError: sizes that do not fit together.

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
    ) -> None:
        super().__init__()
        check_tokens(image_size, patch_size, dim, num_heads, depth)
        if depth % 2 == 0:
            raise ValueError(f"backbone.depth={depth}: choose an odd number, with a block between the two halves")
        self.num_classes, self.outputs, self.checkpointing = num_classes, outputs, checkpointing
        self.embedding = ConditionEmbedding(dim, dim, num_classes)
        out_channels = outputs * in_channels
        self.patches = Patches(image_size, in_channels, patch_size, dim, out_channels)
        self.position = nn.Parameter(0.02 * torch.randn(1 + self.patches.rows * self.patches.columns, dim))
        self.inward = nn.ModuleList(Block(dim, num_heads) for _ in range(depth // 2))
        self.middle = Block(dim, num_heads)
        self.joined = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(depth // 2))
        self.outward = nn.ModuleList(Block(dim, num_heads) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(dim)
        # the identity at first: as zeros, its few weights would hold up the gradient of all that lies before it
        self.head = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        nn.init.dirac_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        """x (B, C, H, W), time (B,) on DDPM's clock 0 … 1000, condition by label or None -> (B, outputs·C, H, W)."""
        token = self.embedding(time, condition)[:, None]
        tokens = torch.cat([token, self.patches.to_tokens(x)], dim=1) + self.position  # (B, 1 + N, dim)
        skips = []
        for block in self.inward:
            tokens = maybe_checkpoint(self.checkpointing, block, tokens)
            skips.append(tokens)
        tokens = maybe_checkpoint(self.checkpointing, self.middle, tokens)
        for join, block in zip(self.joined, self.outward, strict=True):
            tokens = join(torch.cat([tokens, skips.pop()], dim=2))
            tokens = maybe_checkpoint(self.checkpointing, block, tokens)
        return self.head(self.patches.to_image(self.norm(tokens[:, 1:])))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention, self.mlp = TokenAttention(dim, num_heads), mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))
