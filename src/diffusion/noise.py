"""Randomness as a function of what it is for: never of batch size, device count or what ran before."""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Noise = Callable[[], Tensor]  # each call draws fresh standard normal noise of a batch's shape

_MASK = 0xFFFFFFFF


def stream_seed(stream: str, seed: int, index: int) -> int:
    """A 32-bit generator seed for item `index` of a named stream ("train", "validation", "sample" …).

    Within one (stream, seed) the map index -> seed is one-to-one up to 2³² items: an offset that hashes
    (stream, seed), then murmur3's bijective finalizer. (PyTorch's CPU generator uses just 32 bits of a seed.)
    """
    offset = int.from_bytes(hashlib.blake2b(f"{stream}/{seed}".encode(), digest_size=4).digest(), "big")
    h = (offset + index) & _MASK
    h ^= h >> 16
    h = (h * 0x85EBCA6B) & _MASK
    h ^= h >> 13
    h = (h * 0xC2B2AE35) & _MASK
    return h ^ (h >> 16)


class IndexedNoise:
    """Standard normal noise whose row for item i is a function of (stream, seed, i) and of the count of draws alone.

    Drawn on the CPU, so that a sample is the same image on any device, up to float rounding.

    Args:
        seed: the run's seed.
        indices: the items, one row each.
        shape: of one item, (C, H, W).
        device: where the draws are needed.
        stream: keeps noise for different purposes apart.
    """

    def __init__(
        self,
        seed: int,
        indices: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        stream: str = "sample",
    ) -> None:
        self.shape, self.device = tuple(shape), device
        self._generators = [torch.Generator().manual_seed(stream_seed(stream, seed, i)) for i in indices]

    def __call__(self) -> Tensor:
        """The next draw, (len(indices), *shape), float32."""
        rows = torch.empty(len(self._generators), *self.shape)
        for row, generator in zip(rows, self._generators, strict=True):
            row.normal_(generator=generator)
        return rows.to(self.device, non_blocking=True)
