"""Images out of a denoiser, as files and extractors take them, and what they cost."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_diffusion.codecs.pixels import to_uint8
from lightning_diffusion.diffusion.denoiser import Counted, Denoiser
from lightning_diffusion.diffusion.noise import IndexedNoise
from lightning_diffusion.diffusion.samplers.base import Sampler, class_labels


class DiffusionGenerator(NamedTuple):
    """How samples are made; sample number i is a function of this, the weights and i alone, up to float rounding.

    sampler: of the reverse process. guidance: denoiser -> denoiser. shape: (C, H, W). num_classes: K, sample i being of
    class i mod K; None without classes. seed: of the noise.
    """

    sampler: Sampler
    guidance: Callable[[Denoiser], Denoiser]
    shape: Sequence[int]
    num_classes: int | None
    seed: int

    def make(
        self,
        denoiser: Denoiser,
        indices: Sequence[int],
        device: torch.device | str = "cpu",
        on_step: Callable[[], None] = lambda: None,
    ) -> tuple[Tensor, int]:
        """Samples number `indices`, all at once: uint8 (B, C, H, W) on the CPU, and the count of images that the
        denoiser was evaluated on for them."""
        counted = Counted(denoiser)
        guided = self.guidance(counted).to(device)  # a guidance may bring a network of its own
        x = self.sampler.sample(
            guided, indices, self.shape, self.seed, self._labels(indices), len(indices), device, on_step
        )
        return to_uint8(x), counted.items

    @torch.inference_mode()
    def animation(
        self, denoiser: Denoiser, indices: Sequence[int], device: torch.device | str = "cpu"
    ) -> Iterator[Tensor]:
        """The states of the walk to these samples, from noise to image, each uint8 (B, C, H, W) on the CPU."""
        labels = self._labels(indices)
        noise = IndexedNoise(self.seed, indices, self.shape, device)
        for x in self.sampler.walk(
            self.guidance(denoiser).to(device), noise, None if labels is None else labels.to(device)
        ):
            yield to_uint8(x).cpu()

    def check(self, denoiser: Denoiser) -> None:
        """Raises ValueError where the denoiser cannot be guided or walked so."""
        self.sampler.check(self.guidance(denoiser))

    def _labels(self, indices: Sequence[int]) -> Tensor | None:
        labels = class_labels(max(indices) + 1, self.num_classes)
        return None if labels is None else labels[list(indices)]


def shard_batches(count: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[range]:
    """The batches of samples 0 … count − 1 that a rank makes: whole ones, dealt in turn, so that a batch is the same
    whoever makes it."""
    batches = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    return batches[rank::world_size]
