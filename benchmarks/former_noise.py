"""Runs a program with the random numbers of before, by torch's own generators: all else should be as it was.

python -m benchmarks.former_noise PROGRAM [WORD …]     # as python -m PROGRAM WORD …

Needs:  the module PROGRAM.
Prints: what PROGRAM prints.
Takes:  as long as PROGRAM.

It takes effect in this process only: a run of several processes starts the others without it.
"""

import argparse
import contextlib
import runpy
import sys
from collections.abc import Iterator, Sequence
from unittest import mock

import torch
from torch import Tensor

from benchmarks.turns import parser_of
from lightning_diffusion.diffusion.noise import BatchRNG, IndexedNoise, stream_seed


class FormerBatchRNG:
    """One sequential generator for each batch, on the batch's device; each rank draws all rows and takes its own."""

    def __init__(
        self,
        seed: int | None = None,
        start: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.device, self.rank, self.world_size = device, rank, world_size
        self.generator = None
        if seed is not None:
            self.generator = torch.Generator(device).manual_seed(stream_seed("train", seed, start))

    def normal(self, like: Tensor) -> Tensor:
        shape = (self.world_size * len(like), *like.shape[1:])
        whole = torch.randn(shape, generator=self.generator, device=self.device, dtype=like.dtype)
        return whole.chunk(self.world_size)[self.rank]

    def uniform(self, count: int) -> Tensor:
        whole = torch.rand(self.world_size * count, generator=self.generator, device=self.device)
        return whole.chunk(self.world_size)[self.rank]

    def spread(self, count: int) -> Tensor:
        B = self.world_size * count
        first = torch.rand(1, generator=self.generator, device=self.device)
        return ((first + torch.arange(B, device=self.device) / B) % 1).chunk(self.world_size)[self.rank]


class FormerIndexedNoise:
    """One sequential generator for each item, on the CPU."""

    def __init__(
        self,
        seed: int,
        indices: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        stream: str = "sample",
    ) -> None:
        self.shape, self.device = tuple(shape), device
        self.generators = [torch.Generator().manual_seed(stream_seed(stream, seed, i)) for i in indices]

    def __call__(self) -> Tensor:
        rows = torch.empty(len(self.generators), *self.shape)
        for row, generator in zip(rows, self.generators, strict=True):
            row.normal_(generator=generator)
        return rows.to(self.device, non_blocking=True)


@contextlib.contextmanager
def former_noise() -> Iterator[None]:
    """Within, BatchRNG and IndexedNoise draw as they did; modules keep the names that they have imported."""
    with contextlib.ExitStack() as stack:
        for now, former in ((BatchRNG, FormerBatchRNG), (IndexedNoise, FormerIndexedNoise)):
            for name, method in vars(former).items():
                if callable(method):
                    stack.enter_context(mock.patch.object(now, name, method))
        yield


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("program", metavar="PROGRAM", help="src.train, for example")
    parser.add_argument("words", metavar="WORD", nargs=argparse.REMAINDER, help="its words")
    given = parser.parse_args()
    sys.argv = [given.program, *given.words]
    with former_noise():
        runpy.run_module(given.program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
