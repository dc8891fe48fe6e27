"""EDM's stochastic sampler."""

import math

import torch
from torch import Tensor

from lightning_diffusion.diffusion.denoiser import Denoiser
from lightning_diffusion.diffusion.noise import Noise
from lightning_diffusion.diffusion.samplers.base import Sampler
from lightning_diffusion.diffusion.samplers.euler import heun
from lightning_diffusion.diffusion.time_grid import TimeGrid


class EDM(Sampler):
    """Heun's method with churn: each step adds noise up to σ̂ = (1 + γ) σ̃, then steps down from there.

    In coordinates x/α with σ̃ = σ/α; γ = min(S_churn/N, √2 − 1) where S_min ≤ σ̃ ≤ S_max, else 0.

    Args:
        churn, noise_min, noise_max, noise_scale: S_churn, S_min, S_max, S_noise. With churn=0 the sampler is
            deterministic and equals Heun's.

    Ref: EDM Alg. 2
    """

    order = 2
    evaluations = 2

    def __init__(
        self,
        time_grid: TimeGrid,
        num_steps: int | None = 18,
        churn: float = 0.0,
        noise_min: float = 0.0,
        noise_max: float = math.inf,
        noise_scale: float = 1.0,
    ) -> None:
        super().__init__(time_grid, num_steps)
        if churn < 0 or noise_scale <= 0 or noise_min > noise_max:
            raise ValueError(
                f"sampler.churn={churn}, noise_scale={noise_scale}, noise_min={noise_min}, noise_max={noise_max}: "
                "choose churn >= 0, noise_scale > 0 and noise_min <= noise_max"
            )
        self.churn, self.noise_scale, self.stochastic = churn, noise_scale, churn > 0
        self.noise_min, self.noise_max = noise_min, noise_max

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, state: None
    ) -> tuple[Tensor, None]:
        schedule = denoiser.schedule
        alpha_t, level = schedule.alpha(t), schedule.sigma(t) / schedule.alpha(t)
        steps = self.num_steps or schedule.chain_length
        gamma = min(self.churn / steps, math.sqrt(2) - 1) if self.noise_min <= level <= self.noise_max else 0.0
        raised = (1 + gamma) * level
        t_hat = schedule.t_of_logsnr(-2 * raised.log())
        if gamma == 0 or t_hat >= schedule.T:  # the clock ends at T, so no noise is added beyond it
            return heun(denoiser, x_t, t, s), None
        added = torch.sqrt(raised**2 - level**2) * self.noise_scale
        x_hat = schedule.alpha(t_hat) * (x_t / alpha_t + added * noise())
        return heun(denoiser, x_hat, t_hat, s), None
