"""The images of each batch, as pure functions of (seed, batch number): a resumed run sees the same images."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

Key = tuple[int, Tensor]  # position of the first image, indices (B,)


def check_fraction(val_fraction: float) -> None:
    if not 0 < val_fraction < 1:
        raise ValueError(f"data.val_fraction={val_fraction}: choose 0 < val_fraction < 1")


def shuffled_split(count: int, val_fraction: float) -> tuple[Tensor, Tensor]:
    """Training indices and held-out indices from a fixed shuffle of `count` ≥ 2, at least one of each."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    num_val = min(max(1, round(val_fraction * count)), count - 1)
    return order[num_val:], order[:num_val]


class EndlessShuffle(Sampler[Key]):
    """Shuffled epochs in one endless stream; batch b holds its positions bB … bB + B − 1.

    Each rank takes its contiguous slice of every batch.

    Args:
        size: number of images N.
        batch_size: of all ranks together.
        num_batches: total number of batches.
        seed: of the shuffles.
        first_batch: the batch to start from (a resumed run's next batch); the length still counts from 0.
        rank, world_size: this process among all.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        num_batches: int,
        seed: int,
        first_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.size, self.batch_size, self.num_batches, self.seed = size, batch_size, num_batches, seed
        self.first_batch, self.rank, self.world_size = first_batch, rank, world_size

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Key]:
        share = self.batch_size // self.world_size
        epoch, permutation = -1, torch.empty(0, dtype=torch.long)
        for batch in range(self.first_batch, self.num_batches):
            start = batch * self.batch_size + self.rank * share
            pieces, position = [], start
            while position < start + share:  # a batch can span two epochs, or several tiny ones
                if position // self.size != epoch:
                    epoch = position // self.size
                    permutation = self._permutation(epoch)
                offset = position % self.size
                piece = permutation[offset : offset + start + share - position]
                pieces.append(piece)
                position += len(piece)
            yield start, torch.cat(pieces)

    def _permutation(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) & 0xFFFFFFFF)
        return torch.randperm(self.size, generator=generator)


class Sequential(Sampler[Key]):
    """All images once, in order. Each rank takes its contiguous slice of every batch."""

    def __init__(self, size: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.size, self.batch_size, self.rank, self.world_size = size, batch_size, rank, world_size

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Key]:
        for batch in torch.arange(self.size).split(self.batch_size):
            share = batch.tensor_split(self.world_size)[self.rank]
            if len(share):
                yield int(share[0]), share
