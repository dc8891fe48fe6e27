"""Euler's and Heun's methods on the probability-flow ODE."""

from torch import Tensor

from src.diffusion.denoiser import Denoiser, to_eps
from src.diffusion.noise import Noise
from src.diffusion.process import expand
from src.diffusion.samplers.base import Sampler
from src.diffusion.schedule import NoiseSchedule


class Euler(Sampler):
    """d(x/α)/d(σ/α) = ε̂, by Euler's method in σ/α; equals DDIM with η = 0. Ref: DDIM Eq. 14; EDM Eq. 4"""

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, state: None
    ) -> tuple[Tensor, None]:
        return euler(denoiser, x_t, t, s)[0], None


class Heun(Sampler):
    """The trapezoidal rule: an Euler step, then the mean of the slopes at both its ends; the last step is Euler's.

    x_s = x_t α_s/α_t + α_s (σ_s/α_s − σ_t/α_t) (ε̂_t + ε̂_s)/2, two network evaluations a step.

    Ref: EDM Alg. 1
    """

    order = 2
    evaluations = 2

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, state: None
    ) -> tuple[Tensor, None]:
        return heun(denoiser, x_t, t, s), None


def euler(denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """(x_s, ε̂_t) of one Euler step, x_s = α_s x̂_0 + σ_s ε̂."""
    schedule = denoiser.schedule
    x_0 = denoiser(x_t, t)
    eps = to_eps(x_0, x_t, schedule.alpha(t), schedule.sigma(t))
    return expand(schedule.alpha(s), x_t) * x_0 + expand(schedule.sigma(s), x_t) * eps, eps


def heun(denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """One Heun step; Euler's where an end has no slope: at s = 0, and at a t without signal."""
    schedule = denoiser.schedule
    x_s, eps_t = euler(denoiser, x_t, t, s)
    if s == 0 or schedule.alpha(t) == 0:
        return x_s
    eps_s = to_eps(denoiser(x_s, s), x_s, schedule.alpha(s), schedule.sigma(s))
    return x_s + expand(slope_weight(schedule, t, s) / 2, x_t) * (eps_s - eps_t)


def slope_weight(schedule: NoiseSchedule, t: Tensor, s: Tensor) -> Tensor:
    """α_s (σ_s/α_s − σ_t/α_t): what a constant slope ε adds to x between t and s, for α_t > 0."""
    return schedule.sigma(s) - schedule.sigma(t) * schedule.alpha(s) / schedule.alpha(t)
