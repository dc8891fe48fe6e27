"""Two players in one loss."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.pixels import to_model
from lightning_diffusion.data.batch import Batch
from lightning_diffusion.diffusion.noise import BatchRNG, IndexedNoise
from lightning_diffusion.models.contracts import HeldOut, Losses, Objective, Training
from lightning_diffusion.models.gan.game import Game
from lightning_diffusion.models.gan.model import GAN
from lightning_diffusion.models.label_dropout import LabelDropout


class Adversarial(Objective):
    """L_G(θ) + L_D(ψ) + γ/2 (r1 ‖∇D_ψ(x)‖² + r2 ‖∇D_ψ(G_θ(z))‖²) for pairs of a real image x and a sample G(z) of
    the same class.

    L_G sees D's weights detached, L_D and the penalties see the samples detached. The gradient of the sum is therefore
    each player's own gradient at the current weights: one backward pass and one optimizer step update both players
    simultaneously.

    Args:
        discriminator: D(images, condition) -> (B,), with the weights. An image's output must not depend on the others.
        game: L_G and L_D.
        r1, r2: weights of the penalties on real images and on samples, ≥ 0. Without them, the players circle around the
            equilibrium.
        final: γ at the end of training, in [0, 1]; it falls from 1 by half a cosine.
        label_dropout: share of training images whose class is left out, so that the model can also draw without one.

    Raises:
        ValueError: a value out of range.

    Ref: Which Training Methods for GANs do actually Converge?, Eq. 9–10; The GAN is dead; long live the GAN!, §2
    """

    figures: Sequence[str] = ("loss", "discriminator", "real", "fake")

    def __init__(
        self,
        discriminator: nn.Module,
        game: Game,
        r1: float = 1.0,
        r2: float = 1.0,
        final: float = 1.0,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not (0 <= r1 < math.inf and 0 <= r2 < math.inf):
            raise ValueError(f"objective.r1={r1}, r2={r2}: choose weights of at least 0")
        if not 0 <= final <= 1:
            raise ValueError(f"objective.final={final}: choose a share of the start in [0, 1]")
        self.discriminator, self.game = discriminator, game
        self.r1, self.r2, self.final, self.drop_labels = r1, r2, final, LabelDropout(label_dropout)

    def check(self, model: GAN) -> None:
        if not isinstance(model, GAN):
            raise ValueError("objective: adversarial training needs a generator without a likelihood; choose model=gan")

    def loss(self, model: GAN, batch: Batch, rng: BatchRNG, training: Training) -> Losses:
        x, condition = to_model(batch.images), self.drop_labels(batch.condition, model.num_classes, rng)
        samples = model.generate(rng.normal(x.new_empty(len(x), model.latent_dim)), condition)
        real, r1 = self._measured(x, condition, self.r1)
        fake, r2 = self._measured(samples.detach(), condition, self.r2)
        weights = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        generator = self.game.generator(
            real.detach(), functional_call(self.discriminator, weights, (samples, condition))
        )
        discriminator = self.game.discriminator(real, fake)
        penalty = self.gamma(training.progress) / 2 * (self.r1 * r1 + self.r2 * r2)
        figures = {"generator": generator, "discriminator": discriminator, "penalty": penalty}
        figures |= {"real": real, "fake": fake, "r1": r1, "r2": r2}
        if self.r1 and self.r2:
            figures["r1_over_r2"] = r1 / r2.mean()  # its mean over the batch is the ratio of the two means
        return Losses(
            generator + discriminator + penalty, figures={name: value.detach() for name, value in figures.items()}
        )

    def gamma(self, progress: float) -> float:
        """γ, the penalties' common factor."""
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2

    @torch.no_grad()
    def held_out(self, model: GAN, batch: Batch, indices: range, seed: int) -> HeldOut:
        """The losses of held-out images, each paired with the sample of a fixed z. In the relativistic game both are
        log 2 if the discriminator cannot distinguish the two."""
        x = to_model(batch.images)
        z = IndexedNoise(seed, indices, (model.latent_dim,), x.device, stream="validation")()
        real = self.discriminator(x, batch.condition)
        fake = self.discriminator(model.generate(z, batch.condition), batch.condition)
        losses = {"loss": self.game.generator(real, fake), "discriminator": self.game.discriminator(real, fake)}
        return HeldOut(losses | {"real": real, "fake": fake})

    def _measured(self, x: Tensor, condition: Condition | None, weight: float) -> tuple[Tensor, Tensor]:
        """D(x) and ‖∇_x D(x)‖² of each image, (B,) each; the latter is 0 where its weight is."""
        if weight == 0:
            score = self.discriminator(x, condition)
            return score, torch.zeros_like(score)
        score = self.discriminator(x.requires_grad_(), condition)
        (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        return score, gradient.square().flatten(1).sum(1)
