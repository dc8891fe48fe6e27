"""Non-Markovian sampling, from deterministic (η = 0) to ancestral (η = 1)."""

from torch import Tensor

from lightning_diffusion.diffusion.denoiser import Denoiser, to_eps
from lightning_diffusion.diffusion.noise import Noise
from lightning_diffusion.diffusion.process import posterior
from lightning_diffusion.diffusion.samplers.base import Sampler
from lightning_diffusion.diffusion.time_grid import TimeGrid


class DDIM(Sampler):
    """x_s = α_s x̂_0 + √(σ_s² − σ̂²) ε̂ + σ̂ z ,  σ̂ = η √β̃ ,  z ~ N(0, I).

    ε̂ is always (x_t − α_t x̂_0)/σ_t. With guidance=clip it therefore follows from the clipped x̂_0, like diffusers'
    use_clipped_model_output=True. By default, diffusers keeps the network's ε̂, which is inconsistent with that x̂_0.

    Args:
        num_steps: at most T on a discrete schedule.
        eta: η in [0, 1]; 0 is deterministic, 1 equals ancestral sampling with the posterior variance.

    Raises:
        ValueError: η outside [0, 1].

    Ref: DDIM Eqs. 12, 16
    """

    def __init__(self, time_grid: TimeGrid, num_steps: int | None = 50, eta: float = 0.0) -> None:
        super().__init__(time_grid, num_steps)
        if not 0 <= eta <= 1:
            raise ValueError(f"sampler.eta={eta}: choose 0 (deterministic) <= eta <= 1 (ancestral)")
        self.eta, self.stochastic = eta, eta > 0

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, state: None
    ) -> tuple[Tensor, None]:
        schedule = denoiser.schedule
        x_0 = denoiser(x_t, t)
        eps = to_eps(x_0, x_t, schedule.alpha(t), schedule.sigma(t))
        var = self.eta**2 * posterior(schedule, t, s).var
        towards_eps = (schedule.sigma(s) ** 2 - var).clamp(min=0).sqrt()
        x_s = schedule.alpha(s) * x_0 + towards_eps * eps
        return (x_s + var.sqrt() * noise() if self.eta > 0 else x_s), None
