"""The classical Runge–Kutta method on the probability flow."""

import torch
from torch import Tensor

from lightning_diffusion.diffusion.denoiser import Denoiser
from lightning_diffusion.diffusion.noise import Noise
from lightning_diffusion.diffusion.samplers.base import Sampler
from lightning_diffusion.diffusion.samplers.euler import MAX_WEIGHT, euler, slope_weight
from lightning_diffusion.diffusion.schedule import NoiseSchedule


class RK4(Sampler):
    """The classical fourth-order Runge–Kutta method on dy/du = ε̂ with y = x/α and u = σ/α, four evaluations per step:

        y_s = y_t + h (k_1 + 2 k_2 + 2 k_3 + k_4)/6 ,   h = u_s − u_t

    k_1 is ε̂ at (y_t, u_t), k_2 at (y_t + h k_1/2, u_t + h/2), k_3 at (y_t + h k_2/2, u_t + h/2), and k_4 at
    (y_t + h k_3, u_s). Since k_4 = (y − x̂_0)/u_s, the weight of the last x̂_0 in x_s is

        w = α_s (u_t − u_s)/(6 u_s) ,

    and w multiplies any error of x̂_0. A step with w > 5 is therefore an Euler step in α and σ, with one evaluation: the
    last step and a first step without signal, where w is infinite, and any step that lowers σ/α by a factor above 31,
    or more where α_s < 1.

    Ref: DDIM Eq. 14 for the ODE; Hairer, Nørsett & Wanner, Solving Ordinary Differential Equations I, §II.1
    """

    order = 4
    evaluations = 4

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, state: None
    ) -> tuple[Tensor, None]:
        schedule = denoiser.schedule
        x_s, x_0, eps = euler(denoiser, x_t, t, s)
        step_weight = slope_weight(schedule, t, s) / 6
        if -step_weight * schedule.alpha(s) / schedule.sigma(s) > MAX_WEIGHT:
            return x_s, None
        r = halfway(schedule, t, s)
        change, total = torch.zeros_like(x_t), torch.zeros_like(x_t)  # k_i − k_1, and the weighted sum of all
        for time, stage_weight in ((r, 2), (r, 2), (s, 1)):
            alpha, sigma, moved = schedule.alpha(time), schedule.sigma(time), slope_weight(schedule, t, time) * change
            x = alpha * x_0 + sigma * eps + moved
            # ε̂(x) − k_1, where the terms in 1/α_t of x/α have cancelled: in float32 they would be lost at small α_t
            change = (alpha * (x_0 - denoiser(x, time)) + moved) / sigma
            total = total + stage_weight * change
        return x_s + step_weight * total, None


def halfway(schedule: NoiseSchedule, t: Tensor, s: Tensor) -> Tensor:
    """Return the time at which σ/α is the mean of its values at t and s, for α_t > 0."""
    level = (schedule.sigma(t) / schedule.alpha(t) + schedule.sigma(s) / schedule.alpha(s)) / 2
    return schedule.t_of_logsnr(-2 * level.log())
