"""Euler's and Heun's methods for the probability flow, which is dx = x̂_0 dα + ε̂ dσ on every schedule."""

from torch import Tensor

from lightning_diffusion.diffusion.denoiser import Denoiser, to_eps
from lightning_diffusion.diffusion.noise import Noise
from lightning_diffusion.diffusion.samplers.base import Sampler
from lightning_diffusion.diffusion.schedule import NoiseSchedule

MAX_WEIGHT = 5.0  # of x̂_0 at the end of a step of Heun's or of the classical Runge–Kutta method


class Euler(Sampler):
    """x_s = α_s x̂_0 + σ_s ε̂: Euler's method in α and σ, which equals DDIM with η = 0. Ref: DDIM Eq. 14; EDM Eq. 4"""

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, state: None
    ) -> tuple[Tensor, None]:
        return euler(denoiser, x_t, t, s)[0], None


class Heun(Sampler):
    """The trapezoidal rule for both integrals of the flow, two network evaluations per step:

        x_s = x_t + (α_s − α_t) (x̂_0,t + x̂_0,s)/2 + (σ_s − σ_t) (ε̂_t + ε̂_s)/2

    with x̂_0,s and ε̂_s at the end of an Euler step. With α = 1 it is EDM's Alg. 1; on the rectified flow it is Heun's
    method in t. α_t = 0 needs no special case. Since ε̂_s = (x_s − α_s x̂_0,s)/σ_s, the weight of x̂_0,s is

        w = ½ (α_s − α_t) + ½ (σ_t − σ_s) α_s/σ_s ,

    and w multiplies any error of x̂_0,s. A step with w > 5 is therefore an Euler step, with one evaluation: the last
    step, where w is infinite, and any step that lowers σ/α by a factor above about 11. EDM's own grid has no such step
    before the last if it has ten steps or more.

    Ref: EDM Alg. 1
    """

    order = 2
    evaluations = 2

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, state: None
    ) -> tuple[Tensor, None]:
        return heun(denoiser, x_t, t, s), None


def euler(denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (x_s, x̂_0, ε̂) of one Euler step."""
    schedule = denoiser.schedule
    x_0 = denoiser(x_t, t)
    eps = to_eps(x_0, x_t, schedule.alpha(t), schedule.sigma(t))
    return schedule.alpha(s) * x_0 + schedule.sigma(s) * eps, x_0, eps


def heun(denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return x_s by one step of Heun's method, or of Euler's if w > 5."""
    schedule = denoiser.schedule
    x_s, x_0, eps = euler(denoiser, x_t, t, s)
    alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
    on_x_0, on_eps = (alpha_s - schedule.alpha(t)) / 2, (sigma_s - schedule.sigma(t)) / 2
    if on_x_0 - on_eps * alpha_s / sigma_s > MAX_WEIGHT:
        return x_s
    x_0_s = denoiser(x_s, s)
    eps_s = to_eps(x_0_s, x_s, alpha_s, sigma_s)
    return x_s + on_x_0 * (x_0_s - x_0) + on_eps * (eps_s - eps)


def slope_weight(schedule: NoiseSchedule, t: Tensor, s: Tensor) -> Tensor:
    """Return α_s (σ_s/α_s − σ_t/α_t), the weight of a constant slope ε̂ in x_s, for α_t > 0."""
    return schedule.sigma(s) - schedule.sigma(t) * schedule.alpha(s) / schedule.alpha(t)
