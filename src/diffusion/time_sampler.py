"""The training times: a distribution over t, given as its quantile function."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from src.diffusion.schedule import NoiseSchedule


class TimeSampler(ABC):
    """Draws training times t in (0, T] as F⁻¹(u), u ~ U[0, 1).

    Args:
        stratified: spreads the u of a batch evenly, u_i = (u + i/B) mod 1, which leaves each t's distribution as it
            is and lowers the variance of the batch's loss. Ref: VDM App. I.1, "low-discrepancy sampler"
    """

    def __init__(self, stratified: bool = False) -> None:
        self.stratified = stratified

    def __call__(self, count: int, schedule: NoiseSchedule, device: torch.device) -> Tensor:
        """(count,) times, float32."""
        if self.stratified:
            u = (torch.rand(1, device=device) + torch.arange(count, device=device) / count) % 1
        else:
            u = torch.rand(count, device=device)
        return self.quantile(u, schedule)

    @abstractmethod
    def quantile(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        """u (B,) -> t (B,)."""


class Uniform(TimeSampler):
    """t uniform on {1 … T} or (0, T] (log-uniform in σ on variance-exploding schedules). Ref: DDPM Alg. 1"""

    def quantile(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        return schedule.quantile(u)


class LogitNormal(TimeSampler):
    """t/T = sigmoid(n), n ~ N(loc, scale²): the middle of the clock. Ref: Stable Diffusion 3 Eq. 19

    Args:
        loc, scale: of the normal; scale > 0.
    """

    def __init__(self, loc: float = 0.0, scale: float = 1.0, stratified: bool = False) -> None:
        super().__init__(stratified)
        if scale <= 0:
            raise ValueError(f"time_sampler.scale={scale}: must be > 0")
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
            raise ValueError(f"time_sampler.std={std}: must be > 0")
        self.mean, self.std = mean, std

    def quantile(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        log_level = self.mean + self.std * normal_quantile(u)
        return schedule.training_time(schedule.t_of_logsnr(-2 * log_level))


def normal_quantile(u: Tensor) -> Tensor:
    """Φ⁻¹(u), kept finite at u = 0."""
    u = u.clamp(torch.finfo(u.dtype).eps, 1 - torch.finfo(u.dtype).eps)  # 2u − 1 must stay inside (−1, 1)
    return torch.erfinv(2 * u - 1) * math.sqrt(2)
