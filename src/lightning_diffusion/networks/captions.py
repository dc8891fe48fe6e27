"""A small transformer that turns the words of a caption into one vector."""

import math
from typing import Final

import torch
from torch import Tensor, nn

WIDTH: Final = 64
HEADS: Final = 4
DEPTH: Final = 2
LONGEST: Final = 16  # words of a caption


class CaptionEncoder(nn.Module):
    """Words (B, L) -> a vector (B, dim) that depends on their order. Word 0 means "no word"; without words it is 0.

    A two-layer transformer of width 64 reads the words, each with its position. The vector is a linear map of the mean
    of its results. A learned symbol instead of this mean would hide the words: it is the same for all captions.

    Args:
        num_words: of the vocabulary, with the word 0.
        dim: of the vector.
    """

    def __init__(self, num_words: int, dim: int) -> None:
        super().__init__()
        self.words = nn.Embedding(num_words, WIDTH)
        self.position = nn.Parameter(torch.randn(LONGEST, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, dim, bias=False)
        nn.init.normal_(self.out.weight, std=WIDTH**-0.5)  # numbers of about 1, as in an embedding of classes

    def forward(self, tokens: Tensor) -> Tensor:
        """
        Raises:
            ValueError: too many words.
        """
        L = tokens.shape[1]
        if L > LONGEST:
            raise ValueError(f"condition.tokens: at most {LONGEST} words, not {L}")
        x, is_word = self.words(tokens) + self.position[:L], tokens != 0
        for block in self.blocks:
            x = block(x, is_word[:, None, None])
        mean = (x * is_word[..., None]).sum(1) / is_word.sum(1, keepdim=True).clamp(min=1)
        return self.out(self.norm(mean)) * is_word.any(dim=1, keepdim=True)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x (B, L, WIDTH), seen bool (B, 1, 1, L)."""
        q, k, v = self.qkv(self.norm_1(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, L, d) each
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)  # finite, for captions without words
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_2(x))
