"""The training loss: how far the network's output is from its target at a random time."""

from collections.abc import Sequence

import torch
from torch import Tensor

from src.diffusion.denoiser import NetworkDenoiser
from src.diffusion.noise import IndexedNoise
from src.diffusion.process import marginal
from src.diffusion.time_sampler import TimeSampler

GOLDEN_RATIO = (5**0.5 - 1) / 2


class Objective:
    """L = E_{t, x_0, ε} ‖F(α_t x_0 + σ_t ε, t) − target(x_0, ε)‖², a mean over pixels and batch.

    With uniform times and ε-prediction this is L_simple. Ref: DDPM Eq. 14, Alg. 1

    Args:
        time_sampler: the distribution of t.
    """

    def __init__(self, time_sampler: TimeSampler) -> None:
        self.time_sampler = time_sampler

    def __call__(self, denoiser: NetworkDenoiser, x_0: Tensor, cond: Tensor | None = None) -> Tensor:
        """One draw of the loss for a batch x_0 (B, C, H, W) in [−1, 1] with labels cond (B,) or None -> ()."""
        u = torch.rand(len(x_0), device=x_0.device)
        t = self.time_sampler.quantile(u, denoiser.schedule)
        return self.at(denoiser, x_0, torch.randn_like(x_0), t, cond).mean()

    def on_fixed_noise(
        self,
        denoiser: NetworkDenoiser,
        x_0: Tensor,
        indices: Sequence[int],
        seed: int,
        cond: Tensor | None = None,
    ) -> Tensor:
        """The loss of each item, (B,), at the ε and t that belong to it: item i meets the same ones in every call.

        Times are spread evenly over the clock for any set of consecutive items (the golden ratio's multiples, mod 1),
        whatever times the training prefers, so that losses compare between epochs, runs and time samplers.
        """
        eps = IndexedNoise(seed, indices, x_0.shape[1:], x_0.device, stream="validation")()
        u = torch.tensor([i * GOLDEN_RATIO % 1 for i in indices], device=x_0.device)
        return self.at(denoiser, x_0, eps, denoiser.schedule.quantile(u), cond)

    def at(self, denoiser: NetworkDenoiser, x_0: Tensor, eps: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The loss of each item at given ε (B, C, H, W) and t (B,) -> (B,)."""
        alpha, sigma = denoiser.schedule.alpha(t), denoiser.schedule.sigma(t)
        output = denoiser.predict(marginal(x_0, eps, alpha, sigma), t, cond)
        target = denoiser.parameterization.target(x_0, eps, alpha, sigma)
        return (output - target).square().flatten(1).mean(dim=1)
