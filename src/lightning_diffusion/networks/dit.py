"""The diffusion transformer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.image_size import ImageSize
from lightning_diffusion.networks.layers import ConditionEmbedding, maybe_checkpoint
from lightning_diffusion.networks.transformer import Patches, TokenAttention, check_tokens, mlp, position_embedding


class DiT(nn.Module):
    """A transformer on patches, steered by time and class through adaLN-Zero: every block starts as the identity.

    Args:
        image_size: side of the image in pixels, or [H, W].
        in_channels: of the image.
        patch_size: divides its sides.
        dim: of a token; 4 · num_heads divides it.
        depth: blocks.
        num_heads: of each attention.
        num_classes: None for an unconditional network.
        outputs: see `UNet`.
        checkpointing: computes each block anew in the backward pass instead of keeping its activations.

    Raises:
        ValueError: sizes that do not fit together.

    Ref: DiT §3.2, Fig. 3
    """

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
    ) -> None:
        super().__init__()
        check_tokens(image_size, patch_size, dim, num_heads, depth)
        self.num_classes, self.outputs, self.checkpointing = num_classes, outputs, checkpointing
        self.embedding = ConditionEmbedding(dim, dim, num_classes)
        self.patches = Patches(image_size, in_channels, patch_size, dim, outputs * in_channels)
        position = position_embedding(self.patches.rows, self.patches.columns, dim)
        self.register_buffer("position", position, persistent=False)
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(depth))
        self.modulation = Modulation(dim, 2)

    def forward(self, x: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        """x (B, C, H, W), time (B,) on DDPM's clock 0 … 1000, condition by label or None -> (B, outputs·C, H, W)."""
        embedding = F.silu(self.embedding(time, condition))
        tokens = self.patches.to_tokens(x)
        tokens = tokens + self.position.to(tokens.dtype)
        for block in self.blocks:
            tokens = maybe_checkpoint(self.checkpointing, block, tokens, embedding)
        shift, scale = self.modulation(embedding)
        return self.patches.to_image(modulated(tokens, shift, scale))

    position: Tensor


class Block(nn.Module):
    """Attention and MLP, each x + gate · f(modulated(x)); the gates start at 0."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention, self.mlp = TokenAttention(dim, num_heads), mlp(dim)
        self.modulation = Modulation(dim, 6)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(embedding)
        x = x + gate_1 * self.attention(modulated(x, shift_1, scale_1))
        return x + gate_2 * self.mlp(modulated(x, shift_2, scale_2))


class Modulation(nn.Module):
    """(B, dim) -> `count` vectors for all tokens, each (B, 1, dim), 0 at the start."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.linear = nn.Linear(dim, count * dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, embedding: Tensor) -> tuple[Tensor, ...]:
        return self.linear(embedding)[:, None].chunk(self.count, dim=2)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x) · (1 + scale) + shift."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)
