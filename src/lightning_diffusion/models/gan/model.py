"""Generative adversarial networks as a family: x = G(z), z ~ N(0, I), in one evaluation and without a likelihood."""

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.image_size import ImageSize, height_width
from lightning_diffusion.models.latent import LatentGenerator
from lightning_diffusion.networks.adversarial import ResidualGenerator


class GAN(LatentGenerator):
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

    def generate(self, z: Tensor, condition: Condition | None) -> Tensor:
        """z (B, d) -> images, float32 (B, C, H, W); [−1, 1] is the range of pixels."""
        images: Tensor = self.generator(z, condition)
        return images.float()

    def from_latent(self, z: Tensor, condition: Condition | None, indices: Sequence[int], seed: int) -> Tensor:
        return self.generate(z, condition)
