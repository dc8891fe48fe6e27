"""The training times: a distribution over t, given as its quantile function."""

from abc import ABC, abstractmethod

from torch import Tensor

from src.diffusion.schedule import NoiseSchedule


class TimeSampler(ABC):
    """Maps u ~ U[0, 1) to a training time t in (0, T] of a schedule."""

    @abstractmethod
    def quantile(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        """u (B,) -> t (B,)."""


class Uniform(TimeSampler):
    """t uniform on {1 … T} or (0, T]. Ref: DDPM Alg. 1"""

    def quantile(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        return schedule.quantile(u)
