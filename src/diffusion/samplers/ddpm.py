"""Ancestral sampling."""

from typing import Literal

from torch import Tensor

from src.diffusion.denoiser import Denoiser
from src.diffusion.process import expand, posterior, transition
from src.diffusion.samplers.base import Noise, Sampler
from src.diffusion.time_grid import TimeGrid

Variance = Literal["posterior", "transition"]


class DDPM(Sampler):
    """x_s ~ q(x_s | x_t, x̂_0), the posterior with the estimate in the data's place.

    Args:
        variance: "posterior" takes β̃ = σ²_{t|s} σ_s²/σ_t², "transition" takes β = σ²_{t|s}. Ref: DDPM §3.2

    Ref: DDPM Alg. 2
    """

    def __init__(self, time_grid: TimeGrid, num_steps: int | None = None, variance: Variance = "posterior") -> None:
        super().__init__(num_steps, time_grid)
        self.variance: Variance = variance

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, state: None
    ) -> tuple[Tensor, None]:
        return ancestral(denoiser, x_t, t, s, noise, self.variance), None


def ancestral(
    denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, variance: Variance = "posterior"
) -> Tensor:
    """One ancestral step."""
    q = posterior(denoiser.schedule, t, s)
    mean = expand(q.on_x_t, x_t) * x_t + expand(q.on_x_0, x_t) * denoiser(x_t, t)
    var = q.var if variance == "posterior" else transition(denoiser.schedule, t, s).var
    # "z = 0 at the last step", DDPM Alg. 2: β̃ is 0 there by itself, β is not
    std = var.clamp(min=0).sqrt() * (s > 0)
    return mean + expand(std, x_t) * noise()
