"""Generative adversarial networks as a family: x = G(z), z ~ N(0, I), in one evaluation and without a likelihood."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.image_size import ImageSize, height_width
from lightning_diffusion.codecs.pixels import to_uint8
from lightning_diffusion.diffusion.noise import IndexedNoise
from lightning_diffusion.models.contracts import Drawn, Generator, Model, OnStep, no_report
from lightning_diffusion.networks.adversarial import ResidualGenerator

WALK = 24  # steps of a walk through the latent space


class GAN(Model, Generator):
    """The generator of a GAN. The discriminator is part of the objective: it is trained, but not averaged or needed to
    draw.

    Args:
        network: G, with the weights.
        channels, num_classes: of the images.
        image_size: n of squares, or [H, W].
    """

    def __init__(
        self, network: ResidualGenerator, channels: int, image_size: ImageSize, num_classes: int | None = None
    ) -> None:
        super().__init__()
        self.generator, self.shape, self.num_classes = network, (channels, *height_width(image_size)), num_classes

    @property
    def network(self) -> nn.Module:
        return self.generator

    @property
    def latent_dim(self) -> int:
        return self.generator.latent_dim

    @property
    def num_steps(self) -> int:
        return 1

    def generate(self, z: Tensor, condition: Condition | None) -> Tensor:
        """z (B, d) -> images, float32 (B, C, H, W); [−1, 1] is the range of pixels."""
        images: Tensor = self.generator(z, condition)
        return images.float()

    @torch.inference_mode()
    def draw(
        self, indices: Sequence[int], condition: Condition | None, seed: int, on_step: OnStep = no_report
    ) -> Drawn:
        z = IndexedNoise(seed, indices, (self.latent_dim,), self.device)()
        images = self.generate(z, self._here(condition))
        on_step()
        return Drawn(to_uint8(images).cpu(), len(indices))

    @torch.inference_mode()
    def trajectory(self, indices: Sequence[int], condition: Condition | None, seed: int) -> Iterator[Tensor]:
        """A walk through the latent space, from z = 0 straight to the z of the sample."""
        z, condition = IndexedNoise(seed, indices, (self.latent_dim,), self.device)(), self._here(condition)
        for share in torch.linspace(0, 1, WALK).tolist():
            yield to_uint8(self.generate(share * z, condition)).cpu()

    def _here(self, condition: Condition | None) -> Condition | None:
        return None if condition is None else condition.to(self.device)
