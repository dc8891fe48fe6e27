"""The learned reverse process p(x_s | x_t): the posterior with the estimate x̂_0 substituted for the data."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.diffusion.denoiser import Denoiser
from lightning_diffusion.diffusion.process import expand, first_posterior_variance, posterior, transition
from lightning_diffusion.diffusion.schedule import NoiseSchedule

Variance = Literal["posterior", "transition", "learned"]


class Reverse(NamedTuple):
    """p(x_s | x_t) = N(mean, var I), and its estimate x̂_0. var broadcasts against x."""

    x_0: Tensor
    mean: Tensor
    var: Tensor


def reverse(
    denoiser: Denoiser,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    variance: Variance = "posterior",
    condition: Condition | None = None,
) -> Reverse:
    """Return p(x_s | x_t) = q(x_s | x_t, x̂_0) with one of three variances: β̃ = σ²_{t|s} σ_s²/σ_t² ("posterior"),
    β = σ²_{t|s} ("transition"), or the network's value between the two ("learned").

    At s = 0, where β̃ = 0, "posterior" takes β too: the decoder p(x_0 | x_1) needs a density.

    Args:
        x_t: (B, C, H, W).
        t, s: t > s ≥ 0, () or (B,).

    Raises:
        ValueError: "learned" for a model that was not trained with learned variance.

    Ref: DDPM §3.2; Improved DDPM Eq. 15
    """
    q = posterior(denoiser.schedule, t, s)
    if variance == "learned":
        x_0, share = denoiser.with_share(x_t, t, condition)
        var = between(denoiser.schedule, t, s, share)
    else:
        x_0, beta = denoiser(x_t, t, condition), transition(denoiser.schedule, t, s).var
        var = expand(beta if variance == "transition" else torch.where(s > 0, q.var, beta), x_t)
    return Reverse(x_0, expand(q.on_x_t, x_t) * x_t + expand(q.on_x_0, x_t) * x_0, var)


def between(schedule: NoiseSchedule, t: Tensor, s: Tensor, share: Tensor) -> Tensor:
    """Return exp(v log β + (1 − v) log β̃), v the share, with β̃_2 for β̃ at s = 0. Ref: Improved DDPM Eq. 15, its code"""
    upper = transition(schedule, t, s).var
    lower = torch.where(s > 0, posterior(schedule, t, s).var, first_posterior_variance(schedule))
    return torch.exp(share * expand(upper.log(), share) + (1 - share) * expand(lower.log(), share))
