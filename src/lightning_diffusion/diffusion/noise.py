"""Randomness as a function of what it is for: never of batch size, device count or what ran before."""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Noise = Callable[[], Tensor]  # each call draws fresh standard normal noise of a batch's shape

_MASK = 0xFFFFFFFF
GOLDEN_RATIO = (5**0.5 - 1) / 2


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


def spread(indices: Sequence[int]) -> Tensor:
    """A number in [0, 1) for each item, (B,) float64; those of any consecutive items are spread evenly: the golden
    ratio's multiples, mod 1."""
    return torch.tensor([i * GOLDEN_RATIO % 1 for i in indices], dtype=torch.float64)


class BatchRNG:
    """What chance decides for a training batch. Each rank draws for the whole batch of all ranks, and takes its rows:
    what an image meets does not depend on the number of ranks.

    Args:
        seed: of the whole batch, the same on every rank; None follows torch's own generator.
        device: where the draws are made.
        rank, world_size: this process among all.
    """

    def __init__(
        self, seed: int | None = None, device: torch.device | str = "cpu", rank: int = 0, world_size: int = 1
    ) -> None:
        self.device, self.rank, self.world_size = device, rank, world_size
        self._generator = None if seed is None else torch.Generator(device).manual_seed(seed)

    def normal(self, like: Tensor) -> Tensor:
        """ε ~ N(0, I) of the shape and type of this rank's images (B, …)."""
        whole = (self.world_size * len(like), *like.shape[1:])
        return self._mine(torch.randn(whole, generator=self._generator, device=self.device, dtype=like.dtype))

    def uniform(self, count: int) -> Tensor:
        """u ~ U[0, 1), (count,)."""
        return self._mine(torch.rand(self.world_size * count, generator=self._generator, device=self.device))

    def spread(self, count: int) -> Tensor:
        """u_i = (u + i/B) mod 1 with one u ~ U[0, 1) for all B rows of the whole batch, (count,)."""
        B = self.world_size * count
        first = torch.rand(1, generator=self._generator, device=self.device)
        return self._mine((first + torch.arange(B, device=self.device) / B) % 1)

    def _mine(self, whole: Tensor) -> Tensor:
        return whole.chunk(self.world_size)[self.rank]


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
