"""The games that a generator and a discriminator play: what each player minimizes, for paired real and fake images."""

from abc import ABC, abstractmethod
from typing import final

from torch import Tensor
from torch.nn.functional import softplus


class Game(ABC):
    """The losses of both players, from the discriminator's outputs D(x_i) and D(G(z_i)), (B,) each."""

    @abstractmethod
    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        """L_G of each pair, (B,)."""

    @abstractmethod
    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """L_D of each pair, (B,), without gradient penalties."""


@final
class Relativistic(Game):
    """L_G = softplus(D(x) − D(G(z))),  L_D = softplus(D(G(z)) − D(x)).

    The discriminator only compares the images of a pair, so the generator cannot win with a few images that score
    highly: each sample is measured against another real image.

    Ref: The relativistic discriminator, Eq. 2; The GAN is dead; long live the GAN!, Eq. 2
    """

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return softplus(real - fake)

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return softplus(fake - real)


@final
class Minimax(Game):
    """L_D = −log p(x) − log(1 − p(G(z))),  L_G = log(1 − p(G(z))), with p = sigmoid(D): a zero-sum game.

    The generator's gradient vanishes while the discriminator recognizes every sample.

    Ref: Generative Adversarial Nets, Eq. 1
    """

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return -softplus(fake)

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return softplus(-real) + softplus(fake)


@final
class NonSaturating(Game):
    """L_D of minimax, and L_G = −log p(G(z)), with p = sigmoid(D).

    Ref: Generative Adversarial Nets, §3
    """

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return softplus(-fake)

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return softplus(-real) + softplus(fake)
