"""The evidence lower bound as a loss."""

from collections.abc import Sequence

import torch

from lightning_diffusion.data.batch import Batch
from lightning_diffusion.diffusion.noise import BatchRNG, IndexedNoise
from lightning_diffusion.models.contracts import HeldOut, Losses, Objective, Training
from lightning_diffusion.models.label_dropout import LabelDropout
from lightning_diffusion.models.vae.model import VAE, Bound


class EvidenceLowerBound(Objective):
    """−E_q[log p(x|z)] + β KL(q(z|x) ‖ N(0, I)) in bits per dimension; with β = 1 a bound on −log p(x).

    Args:
        beta: β ≥ 0. Any other value than 1 trains another trade-off, and then the loss is no bound; `val/bits_per_dim`
            always is.
        label_dropout: share of training images whose class is left out, so that the model can also draw without one.

    Raises:
        ValueError: a value out of range.

    Ref: Auto-Encoding Variational Bayes, Eq. 3; β-VAE, Eq. 4
    """

    figures: Sequence[str] = ("loss", "reconstruction", "divergence")

    def __init__(self, beta: float = 1.0, label_dropout: float = 0.0) -> None:
        super().__init__()
        if beta < 0:
            raise ValueError(f"objective.beta={beta}: choose a number of at least 0")
        self.beta, self.drop_labels = beta, LabelDropout(label_dropout)

    def check(self, model: VAE) -> None:
        if not isinstance(model, VAE):
            raise ValueError("objective: the evidence lower bound needs a variational autoencoder; choose model=vae")

    def loss(self, model: VAE, batch: Batch, rng: BatchRNG, training: Training) -> Losses:
        condition = self.drop_labels(batch.condition, model.num_classes, rng)
        eps = rng.normal(torch.empty(len(batch.images), model.latent_dim, device=batch.images.device))
        return Losses(self._total(model, model.bound(batch.images, condition, eps)))

    def held_out(self, model: VAE, batch: Batch, indices: range, seed: int) -> HeldOut:
        noise = IndexedNoise(seed, indices, (model.latent_dim,), batch.images.device, stream="bound")
        bound = model.bound(batch.images, batch.condition, noise())
        parts = {"reconstruction": bound.reconstruction, "divergence": bound.divergence}
        return HeldOut({"loss": self._total(model, bound)} | {name: model.in_bits(v) for name, v in parts.items()})

    def _total(self, model: VAE, bound: Bound) -> torch.Tensor:
        return model.in_bits(bound.reconstruction + self.beta * bound.divergence)
