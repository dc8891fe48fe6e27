"""The likelihood of images under a model: the variational bound of the chain, and the exact likelihood of the flow."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.diffusion.denoiser import Conditioned, Denoiser
from lightning_diffusion.diffusion.noise import Noise
from lightning_diffusion.diffusion.probability_flow import angle, flow_with_density, radius
from lightning_diffusion.diffusion.process import expand, marginal, posterior
from lightning_diffusion.diffusion.reverse import Variance, reverse
from lightning_diffusion.diffusion.runge_kutta import solve
from lightning_diffusion.diffusion.schedule import NoiseSchedule

HALF_BIN = 1 / 255  # half the distance between neighbors of the 256 levels in [−1, 1]


class Bound(NamedTuple):
    """Terms of −log p(x_0) ≤ prior + steps + decoder, in bits per dimension, each (B,)."""

    prior: Tensor
    steps: Tensor
    decoder: Tensor

    @property
    def total(self) -> Tensor:
        return self.prior + self.steps + self.decoder


@torch.no_grad()
def variational_bound(
    denoiser: Denoiser,
    x_0: Tensor,
    noise: Noise,
    condition: Condition | None = None,
    variance: Variance = "posterior",
    discretized: bool = True,
    on_step: Callable[[], None] = lambda: None,
) -> Bound:
    """Estimate the bound of a discrete chain, with one draw of noise for each of its T steps.

        prior    KL(q(x_T | x_0) ‖ N(0, I))
        steps    Σ_{t=2}^T KL(q(x_{t−1} | x_t, x_0) ‖ p(x_{t−1} | x_t))
        decoder  −log p(x_0 | x_1)

    Args:
        x_0: (B, …) in [−1, 1].
        noise: draws of standard normal noise like x_0.
        variance: of p, as in the DDPM sampler; the decoder's is β_1 unless learned.
        discretized: integrate the decoder over each of 256 bins (images) or take its density (continuous data).
        on_step: called after each of the T steps.

    Raises:
        ValueError: a continuous schedule.

    Ref: DDPM Eqs. 5, 13; Improved DDPM §3.1
    """
    schedule = denoiser.schedule
    chain = schedule.chain("variational_bound", "the flow's likelihood")
    T = schedule.end
    alpha_T, var_T = schedule.alpha(T).to(x_0), schedule.sigma(T).to(x_0) ** 2
    prior = 0.5 * (var_T + (alpha_T * x_0) ** 2 - 1 - var_T.log())
    steps, decoder = torch.zeros_like(x_0), torch.zeros_like(x_0)
    for t in chain[:-1]:
        x_t = marginal(x_0, noise(), schedule.alpha(t), schedule.sigma(t))
        p = reverse(denoiser, x_t, t, t - 1, variance, condition)
        if t > 1:
            steps += divergence(schedule, x_0, p.x_0, p.var, t, t - 1)
        else:
            decoder -= (log_bin if discretized else log_normal)(x_0, p.x_0, p.var.sqrt())
        on_step()
    return Bound(*(term.flatten(1).mean(1) / math.log(2) for term in (prior, steps, decoder)))


def bound_of_step(schedule: NoiseSchedule, x_0: Tensor, x0_hat: Tensor, var: Tensor, t: Tensor) -> Tensor:
    """Return L_{t−1} of the variational bound, at t = 1 the discretized decoder, in bits per dimension, (B,).

    Args:
        x_0, x0_hat: data and estimate, (B, C, H, W).
        var: of p(x_{t−1} | x_t), (B, C, H, W).
        t: (B,), in 1 … T.

    Ref: DDPM Eq. 5
    """
    kl = divergence(schedule, x_0, x0_hat, var, t, t - 1)
    decoder = -log_bin(x_0, x0_hat, var.sqrt())
    nats = torch.where(expand(t, x_0) > 1, kl, decoder)
    return nats.flatten(1).mean(1) / math.log(2)


def divergence(schedule: NoiseSchedule, x_0: Tensor, x0_hat: Tensor, var: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return KL(q(x_s | x_t, x_0) ‖ q(x_s | x_t, x̂_0) with variance `var`) of each dimension, in nats, like x_0.

    It has no meaning at s = 0, where q is a point mass.
    """
    q = posterior(schedule, t, s)
    var_q = expand(torch.where(s > 0, q.var, 1.0), x_0)
    gap = expand(q.on_x_0, x_0) * (x_0 - x0_hat)
    return 0.5 * ((var / var_q).log() + (var_q + gap**2) / var - 1)


def flow_log_likelihood(
    denoiser: Denoiser,
    x_0: Tensor,
    noise: Noise,
    condition: Condition | None = None,
    num_probes: int | None = 1,
    tolerance: float = 1e-5,
    t_start: float | None = None,
) -> Tensor:
    """Return log p(x_0) in nats, (B,), by the change of variables along the probability flow from t_start to T.

    Args:
        noise: draws of standard normal noise like x_0, whose signs z probe the flow's divergence.
        num_probes: number of z over which the divergence is averaged, the same z along the whole flow. None computes
            the exact divergence, with one backward pass per dimension of x.
        tolerance: of the adaptive solver.
        t_start: the time assigned to the data; the schedule's first time if None.

    Ref: score-SDE Eq. 39, App. D.2
    """
    schedule, denoiser = denoiser.schedule, Conditioned(denoiser, condition)
    t = torch.tensor(schedule.t_min if t_start is None else t_start, dtype=torch.float64)
    (B, *shape), D = x_0.shape, x_0[0].numel()
    if num_probes is None:
        probes = torch.eye(D).to(x_0)[None].expand(B, D, D)
    else:
        probes = torch.stack([noise().sign().flatten(1) for _ in range(num_probes)], dim=1) / num_probes**0.5
    start, end = (float(angle(schedule, time)) for time in (t, schedule.end))
    r_start, r_end = radius(schedule, t).to(x_0), radius(schedule, schedule.end).to(x_0)
    state = torch.cat([(x_0 / r_start).flatten(1), x_0.new_zeros(B, 1)], dim=1)
    state = solve(flow_with_density(denoiser, shape, probes), state, start, end, tolerance)
    y_T, change = state.split([D, 1], dim=1)
    prior = log_normal(r_end * y_T, torch.zeros_like(y_T), torch.full_like(y_T, schedule.prior_std)).sum(1)
    return prior + D * (r_end / r_start).log() - change[:, 0]


def bits_per_dim(log_likelihood: Tensor, dims: int) -> Tensor:
    """Convert log p in nats to bits per dimension, for pixels with 256 levels: a unit of [−1, 1] spans 127.5."""
    return -log_likelihood / (dims * math.log(2)) + math.log2(127.5)


def log_normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return -0.5 * (((x - mean) / std) ** 2 + math.log(2 * math.pi)) - std.log()


def log_ndtr(z: Tensor) -> Tensor:
    """Return log Φ(z), with a gradient that is right for any z.

    In float32, the gradient of torch.special.log_ndtr is 6 times too large at z = −10⁴, and inf or NaN beyond.
    """
    left = z.clamp(max=-1) / math.sqrt(2)
    tail = torch.log(torch.special.erfcx(-left) / 2) - left.square()
    return torch.where(z < -1, tail, torch.special.log_ndtr(z.clamp(min=-1)))


def log_bin(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return log ∫ N over the bin of each pixel; the outermost bins extend to ±∞.

    A bin with nearly equal values at both ends takes the density at its middle times its width. Value and gradient
    are finite for any mean and std > 0.

    Ref: DDPM Eq. 13
    """
    lower, upper = (x - HALF_BIN - mean) / std, (x + HALF_BIN - mean) / std
    # a bin right of the mean is mirrored to the left, where the normal distribution function keeps its precision
    swap = lower > 0
    to_minus_inf = torch.where(swap, x > 1 - HALF_BIN, x < -1 + HALF_BIN)
    to_plus_inf = torch.where(swap, x < -1 + HALF_BIN, x > 1 - HALF_BIN)
    lower, upper = torch.where(swap, -upper, lower), torch.where(swap, -lower, upper)
    log_lower, log_upper = log_ndtr(lower), log_ndtr(upper)
    log_upper = torch.where(to_plus_inf, 0.0, log_upper)
    log_ratio = log_lower - log_upper
    narrow = log_ratio > -(torch.finfo(x.dtype).eps ** (1 / 3))  # where both ways are equally exact
    middle, log_width = (lower + upper) / 2, math.log(2 * HALF_BIN) - std.log()
    density = log_width - middle.square() / 2 - math.log(2 * math.pi) / 2
    inside = torch.where(narrow, density, log_upper + torch.log1p(-torch.exp(log_ratio.where(~narrow, -1.0))))
    return torch.where(to_minus_inf, log_upper, inside)
