"""Distributions of training times, defined by their quantile functions."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from lightning_diffusion.diffusion.noise import BatchRNG
from lightning_diffusion.diffusion.schedule import NoiseSchedule


class Times(NamedTuple):
    """Training times t, the uniform u they are computed from, and the weights of their losses, each (B,)."""

    t: Tensor
    u: Tensor
    weight: Tensor


class TimeSampler(nn.Module, ABC):
    """Draws training times t in (0, T] as F⁻¹(u), u ~ U[0, 1).

    Args:
        stratified: whether to spread the u of a batch evenly, u_i = (u + i/B) mod 1. This keeps the distribution of
            each t and lowers the variance of the batch's loss. Ref: VDM App. I.1, "low-discrepancy sampler"
    """

    def __init__(self, stratified: bool = False) -> None:
        super().__init__()
        self.stratified = stratified

    def forward(self, count: int, schedule: NoiseSchedule, draws: BatchRNG) -> Times:
        """Draw `count` times, float32, each with weight 1: their distribution is part of the loss."""
        u = draws.spread(count) if self.stratified else draws.uniform(count)
        return Times(self.quantile(u, schedule), u, torch.ones_like(u))

    def observe(self, times: Times, losses: Tensor) -> None:
        """Receive the loss of each time, (B,), without gradient. Adaptive samplers learn from it."""

    @abstractmethod
    def quantile(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        """u (B,) -> t (B,)."""


class Uniform(TimeSampler):
    """t uniform on {1 … T} or (0, T] (log-uniform in σ on variance-exploding schedules). Ref: DDPM Alg. 1"""

    def quantile(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        return schedule.quantile(u)


class LogitNormal(TimeSampler):
    """t/T = sigmoid(n), n ~ N(loc, scale²), which favors the middle of the clock. Ref: Stable Diffusion 3 Eq. 19

    Args:
        loc, scale: mean and standard deviation of n; scale > 0.
    """

    def __init__(self, loc: float = 0.0, scale: float = 1.0, stratified: bool = False) -> None:
        super().__init__(stratified)
        if scale <= 0:
            raise ValueError(f"time_sampler.scale={scale}: choose scale > 0")
        self.loc, self.scale = loc, scale

    def quantile(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        share = torch.sigmoid(self.loc + self.scale * normal_quantile(u))
        return schedule.training_time(share * schedule.T)


class LogNormal(TimeSampler):
    """ln(σ/α) ~ N(mean, std²). Ref: EDM Table 1, P_mean = −1.2, P_std = 1.2

    Args:
        mean, std: of ln(σ/α); std > 0.
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2, stratified: bool = False) -> None:
        super().__init__(stratified)
        if std <= 0:
            raise ValueError(f"time_sampler.std={std}: choose std > 0")
        self.mean, self.std = mean, std

    def quantile(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        log_level = self.mean + self.std * normal_quantile(u)
        return schedule.training_time(schedule.t_of_logsnr(-2 * log_level))


class Importance(TimeSampler):
    """p(t) ∝ √E[L_t²] with losses weighted by 1/p(t): the expectation under uniform times, at minimum variance.

    The clock is divided into bins that uniform times fill evenly. Each bin keeps a running mean of the squared loss,
    which is the same on all ranks and part of the checkpoint. Times are uniform until each bin has occurred in `warmup`
    batches.

    Args:
        num_bins: K; the paper uses K = T, one bin for each step of the chain.
        decay: of the running mean, in [0, 1); the paper averages the last 10 losses.
        uniform_share: fraction in (0, 1] of the draws that is spread over all bins, so that none is neglected.
        warmup: ≥ 1, number of batches.

    Ref: Improved DDPM §3.3, Eq. 18
    """

    second_moment: Tensor
    batches: Tensor

    def __init__(
        self,
        num_bins: int = 100,
        decay: float = 0.9,
        uniform_share: float = 0.001,
        warmup: int = 10,
        stratified: bool = False,
    ) -> None:
        super().__init__(stratified)
        if num_bins < 1 or not 0 <= decay < 1 or not 0 < uniform_share <= 1 or warmup < 1:
            raise ValueError(
                f"time_sampler.num_bins={num_bins}, decay={decay}, uniform_share={uniform_share}, warmup={warmup}: "
                "choose num_bins >= 1, 0 <= decay < 1, 0 < uniform_share <= 1 and warmup >= 1"
            )
        self.decay, self.uniform_share, self.warmup = decay, uniform_share, warmup
        self.register_buffer("second_moment", torch.zeros(num_bins))
        self.register_buffer("batches", torch.zeros(num_bins, dtype=torch.long))

    def quantile(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        return schedule.quantile(u)

    def forward(self, count: int, schedule: NoiseSchedule, draws: BatchRNG) -> Times:
        u = super().forward(count, schedule, draws).u
        p, K = self.probabilities(), len(self.second_moment)
        ends = p.cumsum(0)
        k = torch.searchsorted(ends, u, right=True).clamp(max=K - 1)
        inside = ((u - (ends[k] - p[k])) / p[k]).clamp(0, 1 - torch.finfo(u.dtype).eps)
        u = ((k + inside) / K).clamp(max=1 - torch.finfo(u.dtype).eps)
        return Times(self.quantile(u, schedule), u, 1 / (K * p[k]))

    def probabilities(self) -> Tensor:
        """The probability of each bin, (K,)."""
        uniform = torch.full_like(self.second_moment, 1 / len(self.second_moment))
        if int(self.batches.min()) < self.warmup or float(self.second_moment.sum()) == 0:
            return uniform
        share = self.second_moment.sqrt()
        return torch.lerp(share / share.sum(), uniform, self.uniform_share)

    @torch.no_grad()
    def observe(self, times: Times, losses: Tensor) -> None:
        K = len(self.second_moment)
        k = (times.u * K).long().clamp(max=K - 1)
        totals = torch.stack([torch.bincount(k, losses.double() ** 2, K), torch.bincount(k, minlength=K)])  # (2, K)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(totals)
        squares, counts = totals
        mean = (squares / counts.clamp(min=1)).to(self.second_moment)
        rate = (1 / (self.batches + 1)).clamp(min=1 - self.decay)  # a plain mean at first
        seen = counts > 0
        self.second_moment.copy_(torch.where(seen, torch.lerp(self.second_moment, mean, rate), self.second_moment))
        self.batches.add_(seen)


def normal_quantile(u: Tensor) -> Tensor:
    """Φ⁻¹(u), finite also at u = 0."""
    u = u.clamp(torch.finfo(u.dtype).eps, 1 - torch.finfo(u.dtype).eps)  # 2u − 1 must stay inside (−1, 1)
    return torch.erfinv(2 * u - 1) * math.sqrt(2)
