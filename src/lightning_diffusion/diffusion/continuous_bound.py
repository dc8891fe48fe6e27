"""The variational bound in continuous time, which is comparable between models of any schedule and prediction."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.diffusion.denoiser import Denoiser
from lightning_diffusion.diffusion.likelihood import Bound, log_bin, log_normal
from lightning_diffusion.diffusion.noise import Noise
from lightning_diffusion.diffusion.process import marginal
from lightning_diffusion.diffusion.schedule import NoiseSchedule

LOWEST, HIGHEST = -7.5, 7.0  # log-SNR: the signal is 2.4% of the noise, the noise 3.9 of the 256 levels
CLOSE = 0.5  # distance from HIGHEST, in log-SNR, that whole steps of a long chain can have
DECODER_STDS = tuple(2.0**k / 127.5 for k in range(-2, 6))  # ¼ … 32 of the 256 levels


class Span(NamedTuple):
    """The range of log-SNR that the bound covers, in nats."""

    low: float
    high: float

    @property
    def whole(self) -> bool:
        """Whether the bound ends at the same log-SNR as on other schedules."""
        return self.high > HIGHEST - CLOSE


def span(schedule: NoiseSchedule, highest: float = HIGHEST) -> Span:
    """LOWEST … highest, or the part of it that the schedule covers: a short chain's first step can be below `highest`.

    Raises:
        ValueError: a chain whose only step leaves no signal.
    """
    t = _time(schedule, torch.tensor([LOWEST, highest], dtype=torch.float64))
    if not t.all():
        raise ValueError(f"{schedule.key}: the only step of this chain leaves no signal; choose a longer chain")
    return Span(*schedule.logsnr(t).tolist())


def _time(schedule: NoiseSchedule, logsnr: Tensor) -> Tensor:
    """The time in t_min … T nearest to this log-SNR: on a chain a whole step, but never one without signal."""
    t = schedule.nearest(schedule.t_of_logsnr(logsnr)).clamp(schedule.t_min, float(schedule.T))
    return torch.where(schedule.alpha(t) > 0, t, t - 1)


@torch.no_grad()
def continuous_bound(
    denoiser: Denoiser,
    x_0: Tensor,
    noise: Noise,
    offsets: Tensor,
    condition: Condition | None = None,
    num_levels: int = 4,
    discretized: bool = True,
    highest: float = HIGHEST,
) -> Bound:
    """The bound of infinitely many steps, between the ends λ_0 < λ_1 of `span`.

        prior    KL(q(x at λ_0 | x_0) ‖ N(0, I))
        steps    ½ ∫ e^λ E‖x_0 − x̂_0(x at λ)‖² dλ
        decoder  −log p(x_0 | x at λ_1)

    The integral depends on the schedule only through its ends, which are the same for all schedules that cover them.
    Each item samples it at `num_levels` evenly spaced log-SNRs. On a chain, the network is evaluated at the nearest
    whole step.

    The decoder is Gaussian with mean x̂_0. For continuous data its variance is e^{−λ_1}. For images it is a mixture of
    eight Gaussians, ¼ to 32 levels wide, with equal weights. It costs at most log₂ 8 bits per image more than the best
    of the eight.

    Args:
        x_0: (B, …) in [−1, 1].
        noise: draws standard normal noise like x_0; called num_levels + 1 times.
        offsets: position of each item's first level within the spacing, (B,) in [0, 1).
        discretized: whether x_0 has 256 levels; otherwise p is a density.
        highest: λ_1, if the schedule reaches it. Continuous data must be smooth on the scale of e^{−λ_1/2}.

    Returns:
        bits per dimension, each (B,).

    Ref: VDM Eqs. 11, 17, §5.1
    """
    low, high = span(denoiser.schedule, highest)
    steps = x_0.new_zeros(len(x_0))
    for k in range(num_levels):
        logsnr, x0_hat = _estimate(denoiser, x_0, noise(), low + (high - low) * (k + offsets) / num_levels, condition)
        steps += 0.5 * (high - low) / num_levels * logsnr.exp() * (x_0 - x0_hat).square().flatten(1).mean(1)
    _, x0_hat = _estimate(denoiser, x_0, noise(), torch.full_like(offsets, high), condition)
    if discretized:
        log_p = _log_mixture(x_0, x0_hat)
    else:
        log_p = log_normal(x_0, x0_hat, torch.full_like(x_0, math.exp(-high / 2))).flatten(1).mean(1)
    return Bound(*(nats / math.log(2) for nats in (_prior(x_0, low), steps, -log_p)))


def _estimate(
    denoiser: Denoiser, x_0: Tensor, eps: Tensor, logsnr: Tensor, condition: Condition | None
) -> tuple[Tensor, Tensor]:
    """The nearest log-SNR (B,) of the schedule, and x̂_0 there."""
    schedule = denoiser.schedule
    t = _time(schedule, logsnr).to(x_0)
    x_t = marginal(x_0, eps, schedule.alpha(t), schedule.sigma(t))
    return schedule.logsnr(t), denoiser(x_t, t, condition)


def _prior(x_0: Tensor, logsnr: float) -> Tensor:
    """KL(N(αx_0, σ²) ‖ N(0, 1)) with α² + σ² = 1, a mean over dimensions, in nats, (B,)."""
    alpha_2, sigma_2 = 1 / (1 + math.exp(-logsnr)), 1 / (1 + math.exp(logsnr))
    return 0.5 * (alpha_2 * x_0.square().flatten(1).mean(1) + sigma_2 - 1 - math.log(sigma_2))


def _log_mixture(x_0: Tensor, x0_hat: Tensor) -> Tensor:
    """log of the mean over DECODER_STDS of p(x_0), divided by the number of dimensions, (B,)."""
    log_p = torch.stack([log_bin(x_0, x0_hat, torch.full_like(x_0, std)).flatten(1).sum(1) for std in DECODER_STDS])
    return (log_p.logsumexp(0) - math.log(len(DECODER_STDS))) / x_0[0].numel()
