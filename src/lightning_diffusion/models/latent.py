"""Models whose images are functions of one latent vector."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.pixels import to_uint8
from lightning_diffusion.diffusion.noise import IndexedNoise
from lightning_diffusion.models.contracts import Drawn, Generator, Model, OnStep, no_report

WALK: Final = 24  # steps of a walk through the latent space


class LatentGenerator(Model, Generator):
    """A family that draws x = G(z), z ~ N(0, I), in one evaluation of its network."""

    @property
    @abstractmethod
    def latent_dim(self) -> int:
        """d of z."""

    @abstractmethod
    def from_latent(self, z: Tensor, condition: Condition | None, indices: Sequence[int], seed: int) -> Tensor:
        """z (B, d) -> images, float32 (B, C, H, W); [−1, 1] is the range of pixels.

        Args:
            condition: of length B, on the device of z, or None.
            indices, seed: determine any other randomness.
        """

    @property
    def num_steps(self) -> int:
        return 1

    @torch.inference_mode()
    def draw(
        self, indices: Sequence[int], condition: Condition | None, seed: int, on_step: OnStep = no_report
    ) -> Drawn:
        images = self.from_latent(self._latent(indices, seed), self.here(condition), indices, seed)
        on_step()
        return Drawn(to_uint8(images).cpu(), len(indices))

    @torch.inference_mode()
    def trajectory(self, indices: Sequence[int], condition: Condition | None, seed: int) -> Iterator[Tensor]:
        """A walk through the latent space, from z = 0 straight to the z of the sample."""
        z, condition = self._latent(indices, seed), self.here(condition)
        for share in torch.linspace(0, 1, WALK).tolist():
            yield to_uint8(self.from_latent(share * z, condition, indices, seed)).cpu()

    def here(self, condition: Condition | None) -> Condition | None:
        """The condition on the device of the model."""
        return None if condition is None else condition.to(self.device)

    def _latent(self, indices: Sequence[int], seed: int) -> Tensor:
        return IndexedNoise(seed, indices, (self.latent_dim,), self.device)()
