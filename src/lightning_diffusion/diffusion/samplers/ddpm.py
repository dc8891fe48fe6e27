"""Ancestral sampling."""

from torch import Tensor

from lightning_diffusion.diffusion.denoiser import Denoiser, no_variance
from lightning_diffusion.diffusion.noise import Noise
from lightning_diffusion.diffusion.reverse import Variance, reverse
from lightning_diffusion.diffusion.samplers.base import Sampler
from lightning_diffusion.diffusion.time_grid import TimeGrid


class DDPM(Sampler):
    """x_s ~ p(x_s | x_t), the posterior with the estimate x̂_0 substituted for the data.

    Args:
        variance: "posterior" takes β̃ = σ²_{t|s} σ_s²/σ_t², "transition" β = σ²_{t|s}, "learned" the network's output.

    Ref: DDPM Alg. 2, §3.2; Improved DDPM Eq. 15
    """

    stochastic = True

    def __init__(self, time_grid: TimeGrid, num_steps: int | None = None, variance: Variance = "posterior") -> None:
        super().__init__(time_grid, num_steps)
        self.variance: Variance = variance

    def check(self, denoiser: Denoiser) -> None:
        super().check(denoiser)
        if self.variance == "learned" and not denoiser.learns_variance:
            raise no_variance()

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, state: None
    ) -> tuple[Tensor, None]:
        return ancestral(denoiser, x_t, t, s, noise, self.variance), None


def ancestral(
    denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, variance: Variance = "posterior"
) -> Tensor:
    """Take one ancestral step. The last step returns the mean. Ref: DDPM Alg. 2 ("z = 0")"""
    p = reverse(denoiser, x_t, t, s, variance)
    return p.mean + p.var.clamp(min=0).sqrt() * (s > 0) * noise()
