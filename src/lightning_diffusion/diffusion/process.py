"""The Gaussian kernels of the diffusion process: marginal, transition and posterior.

Coefficients have the shape and dtype of the times. Samplers use float64 times.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_diffusion.diffusion.schedule import NoiseSchedule


def expand(coefficient: Tensor, x: Tensor) -> Tensor:
    """Reshape a coefficient, () or (B,), to broadcast against x (B, …), and convert it to the dtype of x.

    Without the conversion, a float64 coefficient of shape (B,) would promote a float32 x to float64.
    """
    if coefficient.ndim == 0:
        return coefficient.to(x.dtype)
    return coefficient.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def marginal(x_0: Tensor, eps: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
    """x_t = α_t x_0 + σ_t ε.

    Args:
        x_0, eps: data and standard normal noise, (B, C, H, W).
        alpha_t, sigma_t: (B,) or ().

    Ref: DDPM Eq. 4
    """
    return expand(alpha_t, x_0) * x_0 + expand(sigma_t, x_0) * eps


class Transition(NamedTuple):
    """q(x_t | x_s) = N(α_{t|s} x_s, σ²_{t|s} I)."""

    alpha: Tensor
    var: Tensor


def transition(schedule: NoiseSchedule, t: Tensor, s: Tensor) -> Transition:
    """α_{t|s} = α_t/α_s ,  σ²_{t|s} = σ_t² − α²_{t|s} σ_s² ,  for s < t. With s = t − 1 the variance is β_t.

    Ref: VDM Eqs. 26–27; DDPM Eq. 2
    """
    alpha_ts = schedule.alpha(t) / schedule.alpha(s)
    var_ts = schedule.sigma(t) ** 2 - alpha_ts**2 * schedule.sigma(s) ** 2
    return Transition(alpha_ts, var_ts)


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(on_x_t · x_t + on_x_0 · x_0, var I)."""

    on_x_t: Tensor
    on_x_0: Tensor
    var: Tensor


def posterior(schedule: NoiseSchedule, t: Tensor, s: Tensor) -> Posterior:
    """mean = (α_{t|s} σ_s²/σ_t²) x_t + (α_s σ²_{t|s}/σ_t²) x_0 ,  var = σ²_{t|s} σ_s²/σ_t² ,  for s < t.

    With s = t − 1 these are DDPM's μ̃_t and β̃_t. Ref: DDPM Eqs. 6, 7; VDM Eqs. 29–32
    """
    alpha_ts, var_ts = transition(schedule, t, s)
    var_s, var_t = schedule.sigma(s) ** 2, schedule.sigma(t) ** 2
    return Posterior(alpha_ts * var_s / var_t, schedule.alpha(s) * var_ts / var_t, var_ts * var_s / var_t)


def first_posterior_variance(schedule: NoiseSchedule) -> float:
    """β̃_2, which replaces β̃_1 = 0 in divisions and logarithms; β_1 on a chain of one step.

    Ref: the code of DDPM and Improved DDPM
    """
    one, two = (torch.tensor(t, dtype=torch.float64) for t in (1.0, 2.0))
    if schedule.T < 2:
        return float(transition(schedule, one, 0 * one).var)
    return float(posterior(schedule, two, one).var)
