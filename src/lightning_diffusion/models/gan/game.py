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

    Ref: The relativistic discriminator; The GAN is dead; long live the GAN!, §2
    """

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return softplus(real - fake)

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return softplus(fake - real)


class CrossEntropy(Game):
    """The discriminator estimates the probability p = sigmoid(D) that an image is real:

    L_D = −log p(x) − log(1 − p(G(z)))
    """

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return softplus(-real) + softplus(fake)


@final
class Minimax(CrossEntropy):
    """L_G = log(1 − p(G(z))): a zero-sum game.

    The generator's gradient vanishes while the discriminator recognizes every sample.

    Ref: Generative Adversarial Nets, Eq. 1
    """

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return -softplus(fake)


@final
class NonSaturating(CrossEntropy):
    """L_G = −log p(G(z)).

    Ref: Generative Adversarial Nets, §3
    """

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return softplus(-fake)
