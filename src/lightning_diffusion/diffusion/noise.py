"""Randomness as a function of its purpose: independent of batch size, of the number of devices and of earlier draws."""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_diffusion.diffusion import threefry

Noise = Callable[[], Tensor]  # each call draws fresh standard normal noise of a batch's shape

_MASK = 0xFFFFFFFF
GOLDEN_RATIO = (5**0.5 - 1) / 2


def stream_key(stream: str, seed: int) -> threefry.Key:
    """The key of a named stream ("train", "validation", "sample" …) of random numbers: a hash of (stream, seed)."""
    digest = hashlib.blake2b(f"{stream}/{seed}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:], "big")


def stream_seed(stream: str, seed: int, index: int) -> int:
    """A 32-bit seed of torch's own generator for item `index` of a named stream, such as the dropout of a batch.

    Within one (stream, seed) the map index -> seed is one-to-one up to 2³² items: an offset that hashes
    (stream, seed), then murmur3's bijective finalizer. (PyTorch's CPU generator uses only 32 bits of a seed.)
    """
    offset = int.from_bytes(hashlib.blake2b(f"{stream}/{seed}".encode(), digest_size=4).digest(), "big")
    h = (offset + index) & _MASK
    h ^= h >> 16
    h = (h * 0x85EBCA6B) & _MASK
    h ^= h >> 13
    h = (h * 0xC2B2AE35) & _MASK
    return h ^ (h >> 16)


def spread(indices: Sequence[int]) -> Tensor:
    """A number in [0, 1) for each item, (B,) float64; those of consecutive items are spread evenly: the golden
    ratio's multiples, mod 1."""
    return _tensor(indices).double() * GOLDEN_RATIO % 1


class BatchRNG:
    """The random numbers of a training batch. Row i is a function of (seed, position of image i in the order of the
    data, numbers drawn before) only: it does not depend on the number of ranks.

    Args:
        seed: of all batches, the same on every rank; None takes one from torch's own generator.
        start: position of the first image of the whole batch, of all ranks.
        device: of the numbers.
        rank, world_size: this process among all. Each has an equal, contiguous share of the rows.
    """

    def __init__(
        self,
        seed: int | None = None,
        start: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._key = stream_key("train", int(torch.randint(2**62, ())) if seed is None else seed)
        self.start, self.device, self.rank, self.world_size = start, device, rank, world_size
        self._used = 0

    def normal(self, like: Tensor) -> Tensor:
        """ε ~ N(0, I) of the shape and type of this rank's images (B, …)."""
        first = self._take(threefry.num_words(like.shape[1:]))
        return threefry.normal(self._key, self._positions(len(like)), first, like.shape[1:]).to(like.dtype)

    def uniform(self, count: int) -> Tensor:
        """u ~ U[0, 1) for each of this rank's images, (count,)."""
        return threefry.uniform(self._key, self._positions(count), self._take(1))

    def spread(self, count: int) -> Tensor:
        """u_i = (u + i/B) mod 1 with one u ~ U[0, 1) for all B rows of the whole batch, (count,)."""
        whole = torch.arange(self.start, self.start + 1, device=self.device)
        u = threefry.uniform(self._key, whole, self._take(1))
        return (u + (self._positions(count) - self.start) / (self.world_size * count)) % 1

    def _positions(self, count: int) -> Tensor:
        first = self.start + self.rank * count
        return torch.arange(first, first + count, device=self.device)

    def _take(self, count: int) -> int:
        """The first of the next `count` words."""
        self._used += count
        return self._used - count


class IndexedNoise:
    """Standard normal noise. Row i is a function of (stream, seed, item i, number of draws before) only, from the same
    random bits on every device: a sample is the same image on each, up to float rounding.

    Args:
        seed: of the run.
        indices: the items ≥ 0, one for each row.
        shape: of one item, (C, H, W).
        device: of the noise.
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
        self._key, self._items, self._draws = stream_key(stream, seed), _tensor(indices, device), 0
        self.shape = tuple(shape)

    def __call__(self) -> Tensor:
        """The next draw, (len(indices), *shape), float32."""
        first = self._draws * threefry.num_words(self.shape)
        self._draws += 1
        return threefry.normal(self._key, self._items, first, self.shape)


def _tensor(indices: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """int64 (B,); a range is made on the device."""
    if isinstance(indices, range):
        return torch.arange(indices.start, indices.stop, indices.step, device=device)
    return torch.tensor(indices, dtype=torch.int64).to(device)
