"""A small transformer that turns the words of a caption into one vector."""

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH: Final = 64
HEADS: Final = 4
DEPTH: Final = 2
LONGEST: Final = 16  # words of a caption


class CaptionEncoder(nn.Module):
    """Words (B, L) -> a vector (B, dim) that depends on their order. Word 0 means "no word"; without words it is 0.

    A two-layer transformer of width 64 reads a learned start symbol and the words, each with its position. The vector
    is a linear map of the result at the start symbol.

    Args:
        num_words: of the vocabulary, with the word 0.
        dim: of the vector.
    """

    def __init__(self, num_words: int, dim: int) -> None:
        super().__init__()
        self.words, self.start = nn.Embedding(num_words, WIDTH), nn.Parameter(torch.randn(WIDTH))
        self.position = nn.Parameter(torch.randn(LONGEST, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """
        Raises:
            ValueError: too many words.
        """
        B, L = tokens.shape
        if L > LONGEST:
            raise ValueError(f"condition.tokens: at most {LONGEST} words, not {L}")
        x = torch.cat([self.start.expand(B, 1, -1), self.words(tokens) + self.position[:L]], dim=1)
        is_word = tokens != 0
        seen = F.pad(is_word, (1, 0), value=True)[:, None, None]  # by every position: the start symbol and the words
        for block in self.blocks:
            x = block(x, seen)
        return self.out(self.norm(x[:, 0])) * is_word.any(dim=1, keepdim=True)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x (B, N, WIDTH), seen bool (B, 1, 1, N)."""
        q, k, v = self.qkv(self.norm_1(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, d) each
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~seen, -math.inf)
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_2(x))
