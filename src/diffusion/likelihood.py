"""How probable a model finds images: the variational bound of the chain, and the exact likelihood of the flow."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from src.diffusion.denoiser import Conditioned, Denoiser
from src.diffusion.process import expand, marginal, posterior, transition
from src.diffusion.samplers.ddpm import Variance

HALF_BIN = 1 / 255  # half the distance of two of the 256 levels in [−1, 1]


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
    generator: torch.Generator,
    cond: Tensor | None = None,
    variance: Variance = "posterior",
    discretized: bool = True,
) -> Bound:
    """The bound of a discrete chain, with one draw of noise for each of its T steps.

        prior    KL(q(x_T | x_0) ‖ N(0, I))
        steps    Σ_{t=2}^T KL(q(x_{t−1} | x_t, x_0) ‖ p(x_{t−1} | x_t))
        decoder  −log p(x_0 | x_1), Gaussian with mean x̂_0 and variance β_1

    Args:
        x_0: (B, …) in [−1, 1].
        variance: of p, as in the DDPM sampler.
        discretized: integrates the decoder over each of 256 bins (images); otherwise it is a density (continuous data).

    Raises:
        ValueError: a continuous schedule.

    Ref: DDPM Eqs. 5, 13; Improved DDPM §3.1
    """
    schedule = denoiser.schedule
    if not schedule.discrete:
        raise ValueError(
            "schedule: the variational bound needs a chain; choose a discrete schedule, or the flow's likelihood"
        )
    denoiser, T = Conditioned(denoiser, cond), schedule.end
    alpha_T, var_T = schedule.alpha(T).to(x_0), schedule.sigma(T).to(x_0) ** 2
    prior = 0.5 * (var_T + (alpha_T * x_0) ** 2 - 1 - var_T.log())
    steps = torch.zeros_like(x_0)
    for t in torch.arange(int(schedule.T), 1, -1, dtype=torch.float64):
        x_t = _noised(denoiser, x_0, t, generator)
        q = posterior(schedule, t, t - 1)
        var_p = q.var if variance == "posterior" else transition(schedule, t, t - 1).var
        gap = expand(q.on_x_0, x_0) * (x_0 - denoiser(x_t, t))
        spread = 0.5 * ((var_p / q.var).log() + q.var / var_p - 1)
        steps += gap**2 / expand(2 * var_p, x_0) + expand(spread, x_0)
    one = torch.ones_like(T)
    mean, std = denoiser(_noised(denoiser, x_0, one, generator), one), expand(schedule.sigma(one), x_0)
    decoder = -(_log_bin(x_0, mean, std) if discretized else _log_normal(x_0, mean, std))
    return Bound(*(term.flatten(1).mean(1) / math.log(2) for term in (prior, steps, decoder)))


def flow_log_likelihood(
    denoiser: Denoiser,
    x_0: Tensor,
    generator: torch.Generator,
    cond: Tensor | None = None,
    num_probes: int | None = 1,
    tolerance: float = 1e-5,
    t_start: float | None = None,
) -> Tensor:
    """log p(x_0) in nats, (B,), by the change of variables along the probability flow from t_start to T:

        dx/dt = α' x̂_0 + σ' ε̂ ,   d log p/dt = −∇·(dx/dt) ,   ∇·x̂_0 ≈ zᵀ (∂x̂_0/∂x) z ,  z = ±1

    Args:
        num_probes: draws of z over which the divergence is averaged; they stay the same along the way. None takes the
            exact divergence, at as many backward passes as x has dimensions.
        tolerance: of the adaptive solver (dopri5).
        t_start: where the data is taken to be; the schedule's first time if None.

    Ref: score-SDE Eq. 39, App. D.2; FFJORD §3.1 for the estimator
    """
    from torchdiffeq import odeint  # an extra: pip install -e '.[likelihood]'

    schedule, denoiser = denoiser.schedule, Conditioned(denoiser, cond)
    D = x_0[0].numel()
    if num_probes is None:
        probes = torch.eye(D).to(x_0).reshape(D, 1, *x_0.shape[1:]).expand(D, *x_0.shape)
    else:
        signs = torch.randint(0, 2, (num_probes, *x_0.shape), generator=generator).to(x_0) * 2 - 1
        probes = signs / num_probes**0.5

    def flow(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = state[0].detach().requires_grad_()
            x_hat = denoiser(x, t)
            divergence = torch.zeros(len(x), dtype=x.dtype, device=x.device)
            for z in probes:
                (product,) = torch.autograd.grad(x_hat, x, z, retain_graph=True)
                divergence = divergence + (product * z).flatten(1).sum(1)
            x_hat = x_hat.detach()
        (alpha, slope_alpha), (sigma, slope_sigma) = (_with_slope(f, t) for f in (schedule.alpha, schedule.sigma))
        eps = (x.detach() - alpha * x_hat) / sigma
        velocity = slope_alpha * x_hat + slope_sigma * eps
        return velocity, -(slope_alpha * divergence + slope_sigma * (D - alpha * divergence) / sigma)

    start = schedule.t_min if t_start is None else t_start
    times = torch.tensor([start, float(schedule.T)], dtype=x_0.dtype, device=x_0.device)
    state = (x_0, torch.zeros(len(x_0), dtype=x_0.dtype, device=x_0.device))
    x_T, change = odeint(flow, state, times, rtol=tolerance, atol=tolerance, method="dopri5")
    prior = _log_normal(x_T[-1], torch.zeros_like(x_0), torch.full_like(x_0, schedule.prior_std)).flatten(1).sum(1)
    return prior - change[-1]


def bits_per_dim(log_likelihood: Tensor, dims: int) -> Tensor:
    """−log p in nats -> bits per dimension, for pixels on 256 levels: a density on [−1, 1] counts 127.5 to the unit."""
    return -log_likelihood / (dims * math.log(2)) + math.log2(127.5)


def _noised(denoiser: Denoiser, x_0: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
    eps = torch.randn(x_0.shape, dtype=x_0.dtype, generator=generator).to(x_0.device)
    return marginal(x_0, eps, denoiser.schedule.alpha(t), denoiser.schedule.sigma(t))


def _with_slope(f: object, t: Tensor) -> tuple[Tensor, Tensor]:
    value, slope = torch.func.jvp(f, (t,), (torch.ones_like(t),))  # type: ignore[arg-type, misc]
    return value, slope


def _log_normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return -0.5 * (((x - mean) / std) ** 2 + math.log(2 * math.pi)) - std.log()


def _log_bin(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log ∫ N over the bin of each pixel; the outermost bins reach to ±∞. Ref: DDPM Eq. 13"""
    upper = torch.where(x > 1 - HALF_BIN, torch.inf, (x + HALF_BIN - mean) / std)
    lower = torch.where(x < -1 + HALF_BIN, -torch.inf, (x - HALF_BIN - mean) / std)
    # on the right half use the mirror image, where the normal's distribution function keeps its digits
    swap = lower > 0
    lower, upper = torch.where(swap, -upper, lower), torch.where(swap, -lower, upper)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return log_upper + torch.log1p(-torch.exp(log_lower - log_upper))
